"""A second computation of ε with independent code: Opacus's PRV accountant.

It composes the privacy loss random variables (PRV; Gopi, Lee and Wutschitz 2021, arXiv 2106.02848) of continuous,
Poisson-subsampled Gaussian steps numerically. It errs by at most 0.01, upwards: it must be within 0.02 of `PLD`, or one
of the two is wrong.

Its time and memory grow with the number of kinds of steps and with the square root of their count, up to minutes and
gigabytes. So it is used only where it takes a few seconds and its floating-point arithmetic holds.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from opacus.accountants import PRVAccountant

from privacy.accounting.accountants import RDP, Accountant

if TYPE_CHECKING:
    from privacy.accounting.accountants import Entries

_LEAST_DELTA = 1e-10
_NOISE = (0.3, 100.0)  # σ
_MOST_KINDS = 10
_MOST_POINTS = 1 << 20  # in all its grids together
_ERROR, _DELTA_ERROR = 0.01, 1e-3  # of ε, absolute; of δ, relative


class _Prv(Accountant):
    name = "PRV"

    def of_record(self, entries: Entries, delta: float) -> float:
        """Return the ε of adding or removing one record; NaN where that is too expensive or inaccurate."""
        if not _bearable(entries, delta):
            return math.nan
        accountant = PRVAccountant()
        accountant.history = [(entry.noise_multiplier, entry.sample_rate, entry.steps) for entry in entries]
        with warnings.catch_warnings():
            # It warns that its first bound on the spread of losses, from RDP, could be tighter.
            warnings.simplefilter("ignore")
            epsilon = accountant.get_epsilon(delta, eps_error=_ERROR, delta_error=_DELTA_ERROR * delta)
        return max(0.0, float(epsilon))


def _bearable(entries: Entries, delta: float) -> bool:
    low, high = _NOISE
    if delta < _LEAST_DELTA or len(entries) > _MOST_KINDS:
        return False
    if not all(low <= entry.noise_multiplier <= high for entry in entries):
        return False
    # Its mesh and its width (section 5 of the paper), the latter from a bound on ε at the error of δ.
    steps = sum(entry.steps for entry in entries)
    mesh = _ERROR / math.sqrt(steps * math.log(12 / delta / _DELTA_ERROR) / 2)
    width = 2 * (3 + RDP.of_record(entries, delta * _DELTA_ERROR / 4))
    return width / mesh * len(entries) <= _MOST_POINTS


PRV: Accountant = _Prv()
