"""The claims held over the whole model: in the parameters that records are trained on, beside canaries' coordinates.

Canaries would pass a pipeline that adds noise to their coordinates and to nothing else, that clips every layer by
itself, or that uses the same noise in two places. Two runs show these: one in which no record has a gradient, so that
all that is seen is noise; and one in which canaries have a gradient in the other task's parameters as well.
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

_LONGEST = 1 << 12  # values of a tensor that are laid over those of others
_ROUNDING = 1e-3  # float32 and the clipping factor's are below


def check_whole(silent: Sighting, loud: Sighting) -> list[Check]:
    """Hold the claims against what was seen of runs with silent and with loud canaries."""
    return [_noise(silent), _clipping(loud), _places(silent)]


def _noise(silent: Sighting) -> Check:
    """Hold every tensor's noise against the ledger's, each by itself."""
    claimed = silent.noise / math.sqrt(len(silent.moved))
    confidence = 1 - FALSE_ALARM / len(silent.own)
    found = {name: scale_interval(each.ravel(), confidence, mean=0.0) for name, each in silent.own.items()}
    # The one that is farthest out, or else the one that tells most.
    ratios = {name: tuple(each / (claimed or math.inf) for each in limits) for name, limits in found.items()}
    wrong = [name for name, (low, _, high) in ratios.items() if not low <= 1 <= high]
    shown = wrong[0] if wrong else max(silent.own, key=lambda name: silent.own[name].size)
    low, middle, high = ratios[shown]
    seen = f"{middle:.3f} of it ({low:.3f} to {high:.3f})" + (f" in {shown}" if wrong else "")
    return Check("model's noise", f"deviation {claimed:.2f} C", seen, not wrong)


def _clipping(loud: Sighting) -> Check:
    """Hold what loud canaries count over all parameters, on the average, against C: no more than that.

    Averages of vectors are no longer than the vectors are, so that gradients may turn from step to step.
    """
    times = max(1, int(loud.batches.sum()))
    own = np.concatenate([each.sum(axis=0) for each in loud.own.values()])
    inside = loud.scores[loud.included]
    beside, error = float(inside.sum()) / times, loud.noise * math.sqrt(inside.size) / times
    least = max(0.0, abs(beside) - NormalDist().inv_cdf(1 - FALSE_ALARM / 4) * error)
    surely = math.hypot(least, length_at_least(own, loud.noise, 1 - FALSE_ALARM / 2) / times)
    length = math.sqrt(max(0.0, float((own**2).sum()) - own.size * loud.noise**2)) / times
    seen = f"{math.hypot(beside, length):.3f}, surely {surely:.3f}; in the task's {length:.3f}"
    return Check("joint clipping", "at most 1 C", seen, surely <= 1 + _ROUNDING)


def _places(silent: Sighting) -> Check:
    """Hold the noise of every tensor against that of every other and of canaries, at any shift; and against itself."""
    parts = [each[:, :_LONGEST] for each in (silent.moved, *silent.own.values())]
    found = [sliding_correlation(each) for each in parts]
    found += [sliding_correlation(*pair) for pair in combinations(parts, 2)]
    return independent("other places", found)
