"""Encode a column's distribution as a short vector that keeps as much accuracy as possible under noise.

The column's public range is cut into n bins. A value between two of the n + 1 edges is split between both, more to the
nearer one (f and 1 − f, so that means stay exact). The result is, for every bin, the share of the values below it. Sums
of noisy counts would accumulate the noise of half of them. Instead a value is encoded as a column of R, and the noisy
sum is decoded with L, where L·R is the counting matrix: ½ for an edge at or below, −½ above. The L and R with the
smallest product of longest row and longest column are the square root of that skew-circulant matrix (Henzinger and
Upadhyay, SODA 2025), with θ(m) = π(2m + 1)/n:

    R[i, j] = Σ_m cos(θ(m)·(i − j)) / √(2·sin(θ(m)/2)) / n          and L with sin(θ(m)·(i − j + ½))

Every column of R is divided by its norm, and L multiplied by it, so a value changes the sum by a vector of norm at most
1. With 32 bins, noise of deviation 1 becomes 1.6 in the number of values below a bin; with plain counts, up to 2.8.

    >>> [round(error(bins), 2) for bins in (8, 32, 128)]
    [1.14, 1.58, 2.03]
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]


def encode(positions: Vector, bins: int) -> Vector:
    """Return the sum of the encoded values, `(bins,)`. One value changes it by a vector of norm at most 1.

    An edge's column of R has norm 1, and a value is two of them with weights that add up to 1.

    Args:
        positions: the values' positions in the column's range, 0 to 1: `(n,)`.
        bins: the number of bins.
    """
    below = np.minimum((positions * bins).astype(np.intp), bins - 1)
    above = positions * bins - below
    edges = np.bincount(below, 1 - above, bins + 1) + np.bincount(below + 1, above, bins + 1)
    total: Vector = np.sum(_kernels(bins)[0] * edges, axis=1)
    return total


def reader(bins: int) -> Vector:
    """Return L, `(bins, bins)`: L times an encoded sum is the number of values below each bin minus half of all."""
    return _kernels(bins)[1]


def error(bins: int) -> float:
    """Return the noise in the number of values below a bin, if every number of the sum has noise of deviation 1."""
    return float(np.sum(np.square(np.sin(_angles(bins) / 2) ** -0.5)) / 2 / bins)


def monotone(shares: Vector) -> Vector:
    """Return the shares `(bins,)` made monotone, within 0 and 1.

    Each becomes the midpoint of the largest before and the smallest after, so the maximum error does not grow.
    """
    rising = (np.maximum.accumulate(shares) + np.minimum.accumulate(shares[::-1])[::-1]) / 2
    clipped: Vector = np.clip(rising, 0.0, 1.0)
    return clipped


def quantiles(shares: Vector, levels: Vector) -> Vector:
    """Return the quantiles, as positions in the range, 0 to 1, accurate to one and a half bins.

    Args:
        shares: the shares of the values below each bin, monotone: `(bins,)`.
        levels: the quantiles' shares, 0 to 1: `(k,)`.
    """
    middles = (np.arange(shares.size) + 0.5) / shares.size
    places: Vector = np.interp(levels, [0.0, *shares, 1.0], [0.0, *middles, 1.0])
    return places


def histogram(shares: Vector) -> Vector:
    """Return the share of the values in each bin, `(bins,)`; they add up to 1."""
    at_edges = np.concatenate([[0.0], (shares[1:] + shares[:-1]) / 2, [1.0]])
    in_bins: Vector = np.diff(at_edges)
    return in_bins


@lru_cache(maxsize=8)
def _kernels(bins: int) -> tuple[Vector, Vector]:
    """Return R `(bins, bins + 1)` and L `(bins, bins)`."""
    angles, length = _angles(bins), error(bins) ** 0.5
    root = (2 * np.sin(angles / 2)) ** -0.5 / bins
    offsets = np.arange(-bins, bins)
    columns = np.sum(np.cos(np.outer(offsets, angles)) * root, axis=1) / length
    rows = np.sum(np.sin(np.outer(offsets + 0.5, angles)) * root, axis=1) * length
    apart = np.arange(bins)[:, None] - np.arange(bins + 1) + bins  # index of i − j in the offsets
    return columns[apart], rows[apart[:, :bins]]


def _angles(bins: int) -> Vector:
    return np.pi * (2 * np.arange(bins) + 1) / bins
