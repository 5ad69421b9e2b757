"""What else follows from a decrypted mean, whatever the algorithm: the mean of the last models, and the next range.

Pure numpy and the same operations in the same order at every site, so that all arrive at the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.codec.update import Update


_BLOCK = 1 << 20  # values at a time
_FINEST = 2.0**-20  # of the manifest's bound: a range does not shrink below


def is_averaged(number: int, rounds: int, share: float) -> bool:
    """Whether a round's model is one of those whose mean is the result: the last ⌈share · rounds⌉.

    >>> [is_averaged(number, 5, 0.5) for number in (1, 2, 3, 4, 5)]
    [False, False, True, True, True]
    """
    return number > rounds - math.ceil(share * rounds)


def include(mean: NDArray[np.float32], latest: NDArray[np.float32], count: int) -> None:
    """Turn the mean of `count` - 1 models into that of `count`, in place: mean += (latest - mean) / count, `(n,)`.

    The mean of the last models of noisy training is less noisy than the last one by itself (Polyak and Juditsky, 1992;
    the last part of them only: Shamir and Zhang, 2013). It is made of what all sites have, and costs no privacy.
    """
    for start in range(0, mean.size, _BLOCK):
        block = mean[start : start + _BLOCK]
        exact = block.astype(np.float64)
        exact += (latest[start : start + _BLOCK] - exact) / count
        block[:] = exact


def next_bound(mean: Update, contributors: int, ceiling: float) -> float:
    """Return the range of the next round's updates, from the last public sum: finer levels as updates shrink.

    Four times √K times the largest entry of the mean, rounded up to a power of two: averaging over K sites shrinks
    their noise √K times. What lies beyond is not lost but carried to the next update, and the range grows again by
    as much in a round. Never above `ceiling`, what the manifest allows.
    """
    largest = float(max(mean.vector.max(initial=0.0), -mean.vector.min(initial=0.0)))
    if largest == 0.0:
        return ceiling
    wanted = 4.0 * math.sqrt(contributors) * largest
    return min(ceiling, max(math.ldexp(1.0, math.frexp(wanted)[1]), ceiling * _FINEST))
