"""Derive the mean of the last models and the next range of updates, whatever the algorithm.

Pure numpy, with the same operations in the same order at every site, so that all sites get the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.codec.update import Update


_BLOCK = 1 << 20  # values at a time
_FINEST = 2.0**-20  # of the manifest's bound: the smallest range


def include(mean: NDArray[np.float32], latest: NDArray[np.float32], window: float) -> None:
    """Include one more model in the mean, in place: mean += (latest - mean) / window, `(n,)`.

    With noisy training, the mean of the models is less noisy than the last model (Polyak and Juditsky, 1992; for the
    last part of them only: Shamir and Zhang, 2013). It is computed from models that all sites have: no privacy cost.
    `privacy.run.averaging` says which models are included, and with which window.
    """
    for start in range(0, mean.size, _BLOCK):
        block = mean[start : start + _BLOCK]
        exact = block.astype(np.float64)
        exact += (latest[start : start + _BLOCK] - exact) / window
        block[:] = exact


def next_bound(mean: Update, contributors: int, ceiling: float) -> float:
    """Return the range of the next round's updates, from the last public sum: levels get finer as updates shrink.

    The range is 4·√K times the largest entry of the mean, rounded up to a power of two, because averaging over K sites
    divides their noise by √K. A residual beyond the range is carried to the next update, and the range can grow by as
    much in one round. It never exceeds `ceiling`, the manifest's bound.
    """
    largest = float(max(mean.vector.max(initial=0.0), -mean.vector.min(initial=0.0)))
    if largest == 0.0:
        return ceiling
    wanted = 4.0 * math.sqrt(contributors) * largest
    return min(ceiling, max(math.ldexp(1.0, math.frexp(wanted)[1]), ceiling * _FINEST))
