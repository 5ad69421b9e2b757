"""A second opinion on ε: Opacus' accountant, which composes privacy loss random variables by other code.

Numerical composition (PRV; Gopi, Lee and Wutschitz 2021, arXiv 2106.02848) of continuous, Poisson-subsampled Gaussian
steps. It errs by at most 0.01, upwards: it must be within 0.02 of `PLD`, or one of the two is wrong.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from opacus.accountants import PRVAccountant

from privacy.accountants import Accountant

if TYPE_CHECKING:
    from privacy.accountants import Entries


class _Prv(Accountant):
    name = "PRV"

    def of_record(self, entries: Entries, delta: float) -> float:
        accountant = PRVAccountant()
        accountant.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in entries]
        with warnings.catch_warnings():
            # It warns that the first guess of how wide losses spread, which comes from RDP, could be tighter.
            warnings.simplefilter("ignore")
            return float(accountant.get_epsilon(delta))


PRV: Accountant = _Prv()
