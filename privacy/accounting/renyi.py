"""Bound the Rényi divergences of Gaussian steps, and their ε, from above and cheaply.

K(t) = ln E[(P/Q)^t] under P is t times the divergence of order t + 1. It adds up over steps.

- Steps over all records: closed form, t(t + 1)/2σ².
- Sampled steps: E[(P/Q)^(t+1)] under Q by the trapezoid rule, whose error falls exponentially for such integrands
  (Trefethen and Weideman 2014). Removing a record costs no less than adding one (Mironov, Talwar and Zhang 2019, arXiv
  1908.10530, section 3.2). If the rule would take too many points, a convexity bound is used instead:
  1 + q·(exp(t(t + 1)/2σ²) − 1).
- Sampled steps with discrete noise: only at integer orders, by the binomial formula (section 3.3 there). It holds for
  the discrete Gaussian too, because E[exp(kvX/σ²)] is the same at integer shifts.

A bound of the rounding error is added to each K: a K rounded to 0 or below would make any number of steps free.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from privacy.accounting.steps import ULPS, log_binomial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

_LEAST, _MOST = 0.01, 1e7  # t
_MOST_INTEGER = 1 << 14  # order
_ROUNDS, _TRIED = 6, 12  # of a search, and the number of t in each round
_POINTS = 1 << 13  # of the trapezoid rule
_REACH = 13.0  # standard deviations, beyond which a Gaussian's mass is negligible


def epsilon_of(steps: Sequence[tuple[float, float, int, bool]], delta: float) -> float:
    """Return an upper bound on the ε of steps, each given as σ over the clipping norm, rate, count, and discreteness.

    Canonne, Kamath and Steinke (2020, arXiv 2004.00010), proposition 12; 0 where the divergence is so small that the
    total variation is at most δ.
    """
    integers = any(discrete and rate < 1 for _, rate, _, discrete in steps)
    low, high, best = (1.0, _MOST_INTEGER - 1.0, math.inf) if integers else (_LEAST, _MOST, math.inf)
    for _ in range(_ROUNDS):
        t = np.geomspace(low, high, _TRIED)
        t = np.unique(np.round(t)) if integers else t
        total = np.sum([count * cumulant(sigma, rate, t, discrete=discrete) for sigma, rate, count, discrete in steps],
                       axis=0)  # fmt: skip
        epsilons = (total - math.log(delta) - np.log1p(t)) / t - np.log1p(1 / t)
        epsilons[delta**2 + np.expm1(-total / t) > 0] = 0.0
        place = int(np.argmin(epsilons))
        best = min(best, float(epsilons[place]))
        low, high = t[max(place - 1, 0)], t[min(place + 1, len(t) - 1)]
        if not high > low:
            break
    return max(0.0, best)


def cumulant(sigma: float, rate: float, t: Vector, *, discrete: bool = False) -> Vector:
    """Return an upper bound on K of one step at each t: `(n,)`. If it is discrete and sampled, t must be integers."""
    whole = t * (t + 1) / 2 / sigma**2
    if rate == 1:
        return np.asarray(whole)
    if discrete:
        return np.array([_binomial(sigma, rate, int(order) + 1) for order in t])
    gain = math.log(rate) + whole + np.log(-np.expm1(-whole))
    above = np.logaddexp(0.0, gain + ULPS * (1 + np.abs(gain) + whole))
    interval = min(sigma, sigma**2) / 2
    near = t + 1 <= _POINTS * interval - 2 * _REACH * sigma
    if np.any(near):
        above[near] = np.minimum(above[near], _integrated(sigma, rate, t[near], interval))
    return np.asarray(above)


def _integrated(sigma: float, rate: float, t: Vector, interval: float) -> Vector:
    # Multiples of the interval: the step of a float range is off by the rounding of its first number.
    ends = -_REACH * sigma, float(np.max(t)) + 1 + _REACH * sigma
    x = interval * np.arange(math.floor(ends[0] / interval), math.ceil(ends[1] / interval) + 1)
    losses = np.logaddexp(math.log1p(-rate), math.log(rate) + (x - 0.5) / sigma**2)
    exponents = (t[:, None] + 1) * losses - (x / sigma) ** 2 / 2
    place = np.argmax(exponents, axis=1)
    largest = np.max(exponents, axis=1)
    sums = largest + np.log(np.sum(np.exp(exponents - largest[:, None]), axis=1))
    error = ULPS * (1 + (t + 1) * np.abs(losses[place]) + (x[place] / sigma) ** 2)
    return np.asarray(sums + math.log(interval / sigma / math.sqrt(2 * math.pi)) + error)


@lru_cache(maxsize=1 << 14)
def _binomial(sigma: float, rate: float, order: int) -> float:
    hits = np.arange(2, order + 1.0)
    gains = hits * (hits - 1) / (2 * sigma**2)  # probabilities add up to 1: sum only the excess
    above = log_binomial(order, rate)[2:] + gains + np.log(-np.expm1(-gains))
    error = ULPS * (1 + order * math.log(order) + float(gains[-1]))
    return float(np.logaddexp(0.0, np.logaddexp.reduce(above) + error))
