"""Check the claims over the whole model: in the task's own parameters, not only in canaries' coordinates.

Canaries alone would pass a pipeline that adds noise only to their coordinates, that clips each layer separately, or
that uses the same noise in two places. Two runs reveal these: one in which no record has a gradient, so that everything
is noise; and one in which canaries have a gradient in the task's own parameters as well.
"""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from cloister.audit.checks import FALSE_ALARM, Check, independent
from privacy.accounting.auditing import length_at_least, scale_interval, sliding_correlation

if TYPE_CHECKING:
    from cloister.audit.checks import Sighting

_LONGEST = 1 << 12  # most values of a tensor compared with others at any shift
_ROUNDING = 1e-3  # above the rounding of float32 and of the clipping factor


def check_whole(silent: Sighting, loud: Sighting) -> list[Check]:
    """Check the claims against runs with silent and with loud canaries."""
    return [_noise(silent), _clipping(loud), _places(silent)]


def _noise(silent: Sighting) -> Check:
    """Check each tensor's noise against the ledger's."""
    claimed = silent.noise / math.sqrt(len(silent.moved))
    confidence = 1 - FALSE_ALARM / len(silent.own)
    intervals = {name: scale_interval(value.ravel(), confidence, mean=0.0) for name, value in silent.own.items()}
    # Show a tensor outside its limits or, if there is none, the largest tensor.
    ratios = {name: tuple(limit / (claimed or math.inf) for limit in limits) for name, limits in intervals.items()}
    wrong = [name for name, (low, _, high) in ratios.items() if not low <= 1 <= high]
    worst = wrong[0] if wrong else max(silent.own, key=lambda name: silent.own[name].size)
    low, middle, high = ratios[worst]
    seen = f"{middle:.3f} of it ({low:.3f} to {high:.3f})" + (f" in {worst}" if wrong else "")
    return Check("model's noise", f"deviation {claimed:.2f} C", seen, not wrong)


def _clipping(loud: Sighting) -> Check:
    """Check that a loud canary's average contribution over all parameters is at most C.

    An average of vectors is no longer than the longest of them, so gradients may change direction between steps.
    """
    times = max(1, int(loud.batches.sum()))
    own = np.concatenate([value.sum(axis=0) for value in loud.own.values()])
    inside = loud.scores[loud.included]
    beside, error = float(inside.sum()) / times, loud.noise * math.sqrt(inside.size) / times
    least = max(0.0, abs(beside) - NormalDist().inv_cdf(1 - FALSE_ALARM / 4) * error)
    surely = math.hypot(least, length_at_least(own, loud.noise, 1 - FALSE_ALARM / 2) / times)
    length = math.sqrt(max(0.0, float((own**2).sum()) - own.size * loud.noise**2)) / times
    seen = f"{math.hypot(beside, length):.3f}, surely {surely:.3f}; in the task's {length:.3f}"
    return Check("joint clipping", "at most 1 C", seen, surely <= 1 + _ROUNDING)


def _places(silent: Sighting) -> Check:
    """Check that the noise of every tensor and of canaries is independent of the others' and its own, at any shift."""
    parts = [series[:, :_LONGEST] for series in (silent.moved, *silent.own.values())]
    correlations = [sliding_correlation(part) for part in parts]
    correlations += [sliding_correlation(*pair) for pair in combinations(parts, 2)]
    return independent("other places", correlations)
