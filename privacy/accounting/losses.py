"""Compute ε from privacy loss distributions of Gaussian steps: discretised upwards and composed, in bounded work.

A step is dominated by a pair P, Q of mixtures of Gaussians, and a sequence of steps, even adaptive ones, by the product
of their pairs (Zhu, Dong and Wang 2022, arXiv 2106.08567, theorems 10 and 11). The privacy loss is L = ln(P/Q) under P.
It adds up over steps, and

    δ(ε) = E[1 − exp(ε − L)]⁺            (Koskela, Jälkö and Honkela 2020, arXiv 1906.03049)

1. *Locate.* K(t) is ln E[exp(t·L)], with derivatives K' and K'', all from a coarse table of the losses. At the t with
   t·K'(t) − K(t) = ln(1/δ), the losses that determine ε lie around K'(t), within a few deviations √K''(t) (the saddle
   point of Alghamdi et al. 2023, arXiv 2208.09595). This is not part of the bound: a bad t makes ε larger, never
   smaller.
2. *Discretise.* The mass of P between two x goes to the grid points around its losses, a and b, in two parts that
   preserve its mass under P and under Q. This is "Connect the Dots" (Doroshenko et al. 2022, arXiv 2207.04380,
   algorithm 1), cell by cell: [1 − exp(ε − L)]⁺ is convex in exp(−L), so spreading the mass to both ends never lowers
   δ, whatever else is composed. Mass below all cells is moved up; mass above them is dropped and added to δ.
3. *Compose.* Multiply discrete Fourier transforms, as in Koskela et al. and in Gopi, Lee and Wutschitz (2021, arXiv
   2106.02848, algorithm 1), of masses tilted by exp(t·L), so that floating point can represent the tail of any δ. Mass
   that wraps around from below only adds to δ. Mass that wraps around from above is
   P(L > last) ≤ E[exp(s·L)]/exp(s·last), and is added to δ.
4. *Read off.* Find the ε at which δ(ε) equals the remaining δ, exactly between two grid points.

The grid has at most `POINTS` points, however many steps there are and however rare and large their losses: a coarser
grid makes ε larger, never smaller. Floating-point rounding is allowed for, up to `ULPS` of each loss and mass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft
from scipy.special import ndtri_exp

from privacy.accounting.steps import ULPS, log_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from privacy.accounting.steps import Step

    Vector = NDArray[np.float64]

POINTS = 1 << 18
"""The most points of a grid."""

_USUAL_POINTS, _FEWEST_POINTS = 1 << 16, 1 << 12  # the fewest usually, and for many kinds of steps
_WORK = 1 << 23  # points of all grids together: many kinds of steps get coarser grids
_CELLS, _FEWEST_CELLS, _MOST_CELLS = 1 << 17, 1 << 9, 1 << 13  # of losses: for all steps together, and for each
_ADDED_VARIANCE = 1e-5  # relative, of the total loss, by its grid
_CUT = math.log(1e-9)  # fraction of δ that is cut off above, or wraps around
_CUT_BELOW = math.log(1e-19)  # the mass below the lower cut
_SPARE = 1e-6  # fraction of δ for mass that wraps around from above
_PASSES, _BETTER = 4, 0.99  # most passes with a new aim, and the factor by which each must improve ε
_CLOSE, _NEAR = 0.5, 4.0  # how far below the aim ε may come out: relative, and in standard deviations
_FAR = 25.0  # how far above ε one step's losses count as certain
_REACH = 12.0  # standard deviations
_SEARCH, _EXPONENTS = 16, (1e-3, 1e9)  # iterations, and the range of t, over the spread of the losses
_FLAT = 1e-6  # the total spread of losses below which they need no grid
_FINEST = 2.0**-50  # the smallest interval relative to the losses, so that floats can tell grid points apart
_LEAST_GAIN = 1e-3  # a smaller gain may be rounding
_LARGEST = 700.0  # a logarithm whose exponential still fits into a float


def epsilon_of(steps: Sequence[tuple[Step, int]], delta: float) -> float:
    """Return an upper bound on the ε of all these steps, in one direction.

    Args:
        steps: at least one kind of step, each with its count.
        delta: above 0, below 1.
    """
    best, points = math.inf, 0
    # A coarse grid smears losses and a fine one accumulates rounding errors: try both, take the better.
    for least, patient in ((_FEWEST_POINTS, False), (min(_USUAL_POINTS, _WORK // len(steps)), True)):
        for _ in range(_PASSES):
            epsilon, again, points = _compose(steps, -math.log(delta), best, least)
            enough = epsilon > _BETTER * best
            best = min(best, epsilon)
            if enough or not (again or patient):
                break
        if not 0 < points < _USUAL_POINTS:
            break
    return best


def _compose(steps: Sequence[tuple[Step, int]], surprise: float, aim: float,
             least: int) -> tuple[float, bool, int]:  # fmt: skip
    """Return the ε at δ = exp(−surprise), whether another pass aimed at it may lower it, and the number of grid points.

    Args:
        steps: the steps, each with its count.
        surprise: ln(1/δ).
        aim: an upper bound on ε known so far.
        least: the fewest points of a grid.
    """
    counts, parts = [count for _, count in steps], sum(len(step.upper.means) for step, _ in steps)
    cells = min(_MOST_CELLS, max(_FEWEST_CELLS, _CELLS // parts // _FEWEST_CELLS * _FEWEST_CELLS))
    above = _CUT - surprise - math.log(sum(counts))
    cut = [_Losses.of(step, above, aim + _FAR, cells) for step, _ in steps]
    lost = sum(count * math.exp(min(step.lost + surprise, _LARGEST)) for step, count in zip(cut, counts, strict=True))
    if lost >= 1:
        return math.inf, False, 0
    surprise -= math.log1p(-lost)
    lowest, most = (sum(count * float(step.edges[end]) for step, count in zip(cut, counts, strict=True))
                    for end in (0, -1))  # fmt: skip
    rounding = ULPS * sum(
        count * max(1.0, float(np.max(np.abs(step.edges)))) for step, count in zip(cut, counts, strict=True)
    )
    most += rounding
    if most - lowest < _FLAT:
        return max(0.0, most), False, 0
    guide = _Guide.of(cut, counts)
    t, s = guide.exponent(surprise, aim), guide.exponent(surprise - _CUT, math.inf)
    (_, mean, whole), (_, middle, variance), (_, top, _) = (guide.cumulants(order) for order in (0.0, t, s))
    width = min((surprise - _CUT) / t, top - mean + _REACH * math.sqrt(whole))  # so that little wraps around from below
    width = max(width, 1.1 * (top - middle) + _REACH / 2 * math.sqrt(variance))
    if not 0 < width < math.inf:  # losses so close together that their sums are rounding errors
        return max(0.0, most), False, 0
    interval = min(math.sqrt(6 * _ADDED_VARIANCE * variance / sum(counts)), width / least)
    interval = max(
        interval, width / max(_FEWEST_POINTS, min(POINTS, _WORK // len(steps))), max(-lowest, most) * _FINEST
    )
    points = fft.next_fast_len(math.ceil(width / interval) + 1, real=True)
    together = list(zip(cut, counts, strict=True))
    composed, bottom, cumulant = _convolve(together, interval, points, t, (s, _CUT - surprise))
    epsilon = _read(composed, interval, bottom, t, cumulant + surprise - math.log1p(-_SPARE - ULPS * sum(counts)))
    if epsilon > 0:
        epsilon = min(max(0.0, most), epsilon + rounding)
    aimed_too_high = epsilon < max(_CLOSE * middle, middle - _NEAR * math.sqrt(variance))
    off = epsilon <= bottom or aimed_too_high or max(float(step.edges[-1]) for step in cut) > epsilon + _FAR
    return epsilon, off and epsilon > 0, points


def _convolve(cut: Sequence[tuple[_Losses, int]], interval: float, points: int, t: float,
              above: tuple[float, float]) -> tuple[Vector, float, float]:  # fmt: skip
    """Return the masses of the total loss, tilted by exp(t·loss − K), `(points,)`; the loss of the first; and K.

    Args:
        cut: the losses of each step, with its count.
        interval: the grid's interval.
        points: the number of grid points.
        t: the tilt.
        above: an exponent s, and the logarithm of the mass that Chernoff's bound with s may leave above the grid.
    """
    s, most = above
    product, cumulant, bound = _Product.of_nothing(points), 0.0, 0.0
    for cut_step, count in cut:
        places, masses = cut_step.on_grid(interval)
        exponents = masses + t * interval * places
        tilted = np.exp(exponents - (total := float(log_sum(exponents))))
        product = product.times(np.bincount(places % points, tilted, points).astype(np.float64), count)
        cumulant += count * total
        bound += count * float(log_sum(masses + s * interval * places))
    last = math.ceil((bound - most) / s / interval)
    return np.roll(product.masses(points), -((last - points) % points)), (last - points) * interval, cumulant


def _read(tilted: Vector, interval: float, bottom: float, t: float, scale: float) -> float:
    """Find the ε at which δ is exp(K − scale), from tilted masses on a grid that starts at `bottom`."""
    masses = tilted * np.exp(np.minimum(scale - t * (bottom + interval * np.arange(len(tilted))), _LARGEST))
    under = _discounted(masses, interval)  # Q's mass, times exp(ε)
    over = np.cumsum(masses[::-1])[::-1] * (1 + len(masses) * ULPS)  # P's mass, plus the rounding of its sum
    (more,) = np.nonzero(over - under > 1)  # below the last of them, this difference may be only rounding
    if not len(more):
        return max(0.0, bottom)
    if (first := int(more[-1]) + 1) == len(masses):
        return math.inf
    return max(0.0, bottom + interval * first + math.log(float((over[first] - 1) / under[first])))


def _discounted(masses: Vector, interval: float) -> Vector:
    """Return, at each grid point, the sum of exp(−distance)·mass over it and all points above: `(points,)`.

    Each pass doubles how many points a sum reaches. `scipy.signal.lfilter` does the same, but loads for a second.
    """
    sums, reach = masses.copy(), 1
    while reach < len(sums) and (factor := math.exp(-interval * reach)) > 0:
        sums[:-reach] += factor * sums[reach:]
        reach *= 2
    return sums


@dataclass(frozen=True)
class _Product:
    """A product of transforms in polar form, with error bounds. Every field: `(points // 2 + 1,)`."""

    sizes: Vector  # logarithms
    angles: Vector
    errors: Vector  # relative to the sizes

    @classmethod
    def of_nothing(cls, points: int) -> _Product:
        nothing = np.zeros(points // 2 + 1)
        return cls(nothing, nothing, nothing)

    def times(self, masses: Vector, count: int) -> _Product:
        """Compose with `count` steps that have these masses `(points,)`, which add up to 1."""
        factor, error = fft.rfft(masses), _rounding(len(masses)) * float(np.linalg.norm(masses))
        size = np.maximum(np.abs(factor), error)
        return _Product(
            self.sizes + count * np.log(size),
            self.angles + count * np.angle(factor),
            self.errors + count * (2 * error / size + ULPS),
        )

    def masses(self, points: int) -> Vector:
        """Transform back to upper bounds of the masses: `(points,)`."""
        sizes = np.exp(self.sizes)
        wrong = sizes * (np.expm1(np.minimum(self.errors, _LARGEST)) + _rounding(points))
        composed = fft.irfft(sizes * np.cos(self.angles) + 1j * (sizes * np.sin(self.angles)), points)
        return np.asarray(np.maximum(composed, 0.0) + float(np.mean(wrong)), np.float64)


def _rounding(points: int) -> float:
    """Return the error of a transform's numbers relative to their root mean square: about √log n (Schatzman 1996)."""
    return 2.0**-52 * math.sqrt(math.log2(points))


@dataclass(frozen=True)
class _Losses:
    """A step's losses, cut into cells."""

    edges: Vector  # (cells + 1,)
    masses: Vector  # logarithms: (cells,)
    ratios: Vector  # of P's masses to Q's, logarithms: (cells,)
    errors: Vector  # bounds of the errors of `ratios`: (cells,)
    below: float  # logarithm of the mass below the first edge, which is put at the second
    lost: float  # logarithm of the mass above the last edge

    @classmethod
    def of(cls, step: Step, above: float, highest: float, cells: int) -> _Losses:
        """Cut a step's losses off at `highest`, or where a mass of exp(above) lies above."""
        low, high = (float(ndtri_exp(probability)) * step.sigma for probability in (_CUT_BELOW, above))
        x = np.linspace(np.min(step.upper.means) + low, np.max(step.upper.means) - high, cells + 1)
        losses = step.loss(x)
        if losses[-1] > highest:
            x = np.linspace(x[0], x[max(1, int(np.searchsorted(losses, highest)))], cells + 1)
            losses = step.loss(x)
        (upper, error), (lower, other) = step.upper.masses(x, step.sigma), step.lower.masses(x, step.sigma)
        below, tail = step.upper.tail(x[:1], step.sigma, -1)[0], step.upper.tail(x[-1:], step.sigma, 1)[0]
        with np.errstate(invalid="ignore"):  # of cells without mass
            ratios = upper - lower
        return cls(np.maximum.accumulate(losses), upper, ratios, error + other, float(below), float(tail))

    def coarse(self) -> tuple[Vector, Vector]:
        """Return fewer cells: the logarithms of their masses, and their mean losses."""
        masses, middles = (
            values.reshape(_FEWEST_CELLS, -1).T for values in (self.masses, self.edges[1:] + self.edges[:-1])
        )
        total = log_sum(masses)
        with np.errstate(invalid="ignore"):
            weights = np.nan_to_num(np.exp(masses - total), nan=1 / len(masses))  # NaN: cells without mass
        return total, np.sum(weights * middles, axis=0) / 2

    def on_grid(self, interval: float) -> tuple[NDArray[np.int64], Vector]:
        """Return grid points, in intervals, and the logarithms of their masses: `(2·cells,)` both."""
        low = np.floor(self.edges[:-1] / interval).astype(np.int64)
        high = np.maximum(np.ceil(self.edges[1:] / interval).astype(np.int64), low + 1)
        widths = interval * (high - low)
        fractions = np.expm1(interval * low - self.ratios) / np.expm1(-widths)  # that go to the higher point
        wrong = np.expm1(np.minimum(self.errors, _LARGEST)) / -np.expm1(-widths)  # bounds of the fractions' errors
        fractions = np.clip(np.nan_to_num(fractions + wrong, nan=1.0), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            lower, higher = self.masses + np.log1p(-fractions), self.masses + np.log(fractions)
        higher[0] = np.logaddexp(higher[0], self.below)
        return np.concatenate([low, high]), np.concatenate([lower, higher])


@dataclass(frozen=True)
class _Guide:
    """A coarse table of the total loss. It only tells where to look, and is not part of the bound."""

    counts: Vector  # (k,)
    masses: Vector  # logarithms: (cells, k)
    losses: Vector  # (cells, k)

    @classmethod
    def of(cls, cut: Sequence[_Losses], counts: Sequence[int]) -> _Guide:
        coarse = [cut_step.coarse() for cut_step in cut]
        masses, losses = (np.array(values).T for values in zip(*coarse, strict=True))
        return cls(np.array(counts, np.float64), masses, losses)

    def cumulants(self, t: float) -> tuple[float, float, float]:
        """Return K, K' and K'' at t."""
        exponents = self.masses + t * self.losses
        sum_of_logs = log_sum(exponents)
        weights = np.exp(exponents - sum_of_logs)
        mean = np.sum(weights * self.losses, axis=0)
        variance = np.sum(weights * (self.losses - mean) ** 2, axis=0)
        return float(self.counts @ sum_of_logs), float(self.counts @ mean), float(self.counts @ variance)

    def exponent(self, surprise: float, aim: float) -> float:
        """Return the t at which t·K' − K is ln(1/δ), or less if K' reaches the aim or the losses end before."""
        spread = float(self.counts @ (self.losses[-1] - self.losses[0]))
        low, high = (math.log(exponent / spread) for exponent in _EXPONENTS)  # of ln t
        for _ in range(_SEARCH):
            middle = (low + high) / 2
            t = math.exp(middle)
            value, slope, variance = self.cumulants(t)
            gain, spread = t * slope - value, t * t * variance
            # A Gaussian's spread is twice its gain. A smaller spread means that t has reached the end of the losses.
            enough = gain >= surprise or slope >= aim or (gain > _LEAST_GAIN and spread < min(gain, 1 / 4))
            low, high = (low, middle) if enough else (middle, high)
        return math.exp(low)
