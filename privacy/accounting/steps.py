"""Describe the dominating pair of a Poisson-sampled Gaussian step: mixtures with and without a person's records.

For one record at rate q, removed: P = (1 − q)·N(0, σ²) + q·N(1, σ²) and Q = N(0, σ²). Added: the same, swapped (Zhu,
Dong and Wang 2022, arXiv 2106.08567). For k records, each sampled independently: Binomial(k, q) replaces the coin
(Choquette-Choo et al. 2024, arXiv 2310.15526). For a record that is replaced by another: 1 on one side, −1 on the
other. Lengths are in clipping norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, log_ndtr

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

ULPS = 8 * 2.0**-52
"""Bound of the relative rounding error of a log-probability."""

_NOTHING = -800.0  # the logarithm of a probability smaller than any positive float


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians with a common standard deviation."""

    means: Vector  # in clipping norms: (m,)
    weights: Vector  # logarithms: (m,)

    def tail(self, x: Vector, sigma: float, side: int) -> Vector:
        """Return the logarithms of the masses above x, or below x if `side` is −1."""
        return log_sum(log_ndtr(side * (self.means[:, None] - x) / sigma) + self.weights[:, None])

    def masses(self, x: Vector, sigma: float) -> tuple[Vector, Vector]:
        """Return the logarithms of the masses between neighbours of x: `(n − 1,)`, and bounds of their errors."""
        above, below = self.tail(x, sigma, 1), self.tail(x, sigma, -1)
        right = above[:-1] < below[1:]
        large, small = np.where(right, above[:-1], below[1:]), np.where(right, above[1:], below[:-1])
        fraction = -np.expm1(np.minimum(small - large, 0.0))
        with np.errstate(divide="ignore"):
            return large + np.log(fraction), ULPS * (1 - large) / fraction

    def density(self, x: Vector, sigma: float) -> Vector:
        """Return the logarithm of the density over that of N(0, σ²)."""
        return log_sum(self.means[:, None] * (x - self.means[:, None] / 2) / sigma**2 + self.weights[:, None])


@dataclass(frozen=True)
class Step:
    """The dominating pair of one step: P, under which losses are drawn, and Q. P/Q rises with x."""

    sigma: float  # over the clipping norm
    upper: Mixture
    lower: Mixture

    def loss(self, x: Vector) -> Vector:
        """Return ln(P/Q) at x."""
        return self.upper.density(x, self.sigma) - self.lower.density(x, self.sigma)


def removed(sigma: float, rate: float, group: int) -> Step:
    """Return the pair for removing a person with `group` records."""
    return Step(sigma, _records(rate, group), _nobody())


def added(sigma: float, rate: float, group: int) -> Step:
    """Return the pair for adding a person with `group` records."""
    return Step(sigma, _nobody(), _records(rate, group, -1))


def replaced(sigma: float, rate: float, group: int) -> Step:
    """Return the pair for replacing one record, or, at rate 1, a person with `group` records."""
    return Step(sigma, _records(rate, group), _records(rate, group, -1))


def log_binomial(count: int, rate: float) -> Vector:
    """Return the log-probabilities of 0 … `count` successes, at a rate below 1: `(count + 1,)`."""
    number = np.arange(count + 1.0)
    choices = gammaln(count + 1) - gammaln(number + 1) - gammaln(count - number + 1)
    return np.asarray(choices + number * math.log(rate) + (count - number) * math.log1p(-rate))


def log_sum(exponents: Vector) -> Vector:
    """Return the logarithms of the sums over the first axis of numbers given as logarithms."""
    if len(exponents) == 1:
        return np.asarray(exponents[0])
    largest = np.max(exponents, axis=0)
    largest = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(largest + np.log(np.sum(np.exp(exponents - largest), axis=0)))


def _records(rate: float, count: int, side: int = 1) -> Mixture:
    """Return the distribution of how far a person's records move the sum."""
    if rate == 1:
        return Mixture(np.array([side * float(count)]), np.zeros(1))
    chances = log_binomial(count, rate)
    (likely,) = np.nonzero(chances > _NOTHING)
    return Mixture(side * likely.astype(np.float64), chances[likely])


def _nobody() -> Mixture:
    return Mixture(np.zeros(1), np.zeros(1))
