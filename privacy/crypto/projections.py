"""Estimate the L2 norm of a vector from a few random projections, and the norm of a sum from the sum of projections.

    y[j] = Σ_i r[j, i]·v[i]      r[j, i] = ±1, from a seed that is drawn after v is fixed        j < k

For a vector of norm ‖v‖, Σ_j y[j]² is k·‖v‖² on average (Achlioptas, JCSS 2003). It must not exceed T = `stretch(k)`
times the square of the allowed norm. Two errors are possible, with these bounds on their probabilities:

- An honest vector is refused: y[j]/‖v‖ is sub-Gaussian, so Pr[Σ y² > T·‖v‖²] ≤ (x·e^(1−x))^(k/2) with x = T/k.
- A vector s times too long passes: z = y[j]²/‖v‖² has E z = 1 and E z² ≤ 3. Among all such z ≥ 0, E e^(−hz) is largest
  for the z that takes only the values 0 and 3. So Pr[Σ z ≤ k·a] ≤ exp(−k·D(a/3 ‖ 1/3)), where a = T/(k·s²) and D is
  the relative entropy of two Bernoulli distributions (Chernoff's bound).

>>> refused_though_short(128) < 2**-30, passes_though_long(128, 2.3) < 2**-20
(True, True)
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import ConfigError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEFAULT = 128
_STRETCH = {32: 115, 64: 167, 128: 261}  # the smallest integers that refuse fewer than one honest vector in 2^30
_ROWS = 1 << 12  # values multiplied at a time: with their signs, they fit into a core's cache
_EXACT = 1 << 53  # integers up to here are exact in double precision


def stretch(projections: int) -> int:
    """Return T: Σ y² may be at most T times the square of the allowed norm.

    Raises:
        ConfigError: if T is not tabulated for this number of projections.
    """
    if projections not in _STRETCH:
        msg = f"{projections} projections are not supported; choose one of {', '.join(map(str, _STRETCH))}"
        raise ConfigError(msg)
    return _STRETCH[projections]


def refused_though_short(projections: int) -> float:
    """Return an upper bound on the probability that a vector of exactly the allowed norm is refused."""
    x = stretch(projections) / projections
    return exp(projections / 2 * (1 + log(x) - x))


def passes_though_long(projections: int, times: float) -> float:
    """Return an upper bound on the probability that a vector passes whose norm is `times` the allowed one."""
    p = stretch(projections) / projections / times**2 / 3
    if p >= 1 / 3:
        return 1.0
    return exp(-projections * (p * log(3 * p) + (1 - p) * log(1.5 * (1 - p))))


def caught_from(projections: int, probability: float) -> float:
    """Return the multiple of the allowed norm from which a vector passes with at most this probability."""
    short, long = sqrt(stretch(projections) / projections), 1e6
    if passes_though_long(projections, long) > probability:
        return float("inf")
    while long - short > 1e-6 * short:
        middle = (short + long) / 2
        if passes_though_long(projections, middle) > probability:
            short = middle
        else:
            long = middle
    return long


class Projection:
    """The k exact projections of a vector of integers, accumulated block by block."""

    def __init__(self, seed: bytes, projections: int) -> None:
        """Start with an empty vector.

        Args:
            seed: 32 bytes that determine the signs: AES-256 in counter mode, k bits per value, lowest bit of a byte
                first, 1 for +1.
            projections: k, a multiple of 8.
        """
        self._stream, self._plus = Randomness(seed), np.zeros(projections)
        self._total = self._most = 0.0

    def add(self, block: NDArray[np.float64]) -> None:
        """Take the vector's next block `(n,)`.

        Raises:
            ConfigError: if the absolute values add up to 2⁵³ or more, where double precision is no longer exact.
        """
        for start in range(0, block.size, _ROWS):
            values = block[start : start + _ROWS]
            self._most += float(np.abs(values).sum())
            if self._most >= _EXACT:
                msg = "the values of the vector are too large to be projected exactly; use a profile with fewer levels"
                raise ConfigError(msg)
            drawn = np.frombuffer(self._stream.bytes(values.size * self._plus.size // 8), dtype=np.uint8)
            bits = np.unpackbits(drawn, bitorder="little").reshape(values.size, self._plus.size)
            self._plus += np.einsum("i,ij->j", values, bits)  # no BLAS: like the rest of a round, on one core
            self._total += float(values.sum())

    @property
    def numbers(self) -> list[int]:
        """The projections."""
        return [int(2 * plus - self._total) for plus in self._plus]
