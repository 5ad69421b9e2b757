"""Bound the ε of choosing the best of several runs, of which only the best is shown.

The number of runs must be drawn at random and stay secret, and each run's settings must be drawn by themselves. Then
choosing costs far less than all runs together (Papernot and Steinke, 2022, arXiv 2110.03620), for anyone who sees only
the run that was chosen:

- Poisson (theorem 6): with mean μ, D'(λ) = D(λ) + μ·δ̂ + ln(μ)/(λ − 1), where the run is (ε̂, δ̂)-private for
  ε̂ = ln(1 + 1/(λ − 1)). No run may be made, and then nothing is shown.
- Truncated negative binomial (theorem 2): with shape η and parameter p,
  D'(λ) = D(λ) + (1 + η)·min over λ̂ of [(1 − 1/λ̂)·D(λ̂) + ln(1/p)/λ̂] + ln(E[K])/(λ − 1).

D(λ) is a bound on the Rényi divergence of one run. Whoever sees every run, as the sites of a run do, is protected by
composition alone, which is what ledgers charge.

    >>> one = [Mechanism(2.0, 0.064, 782)]
    >>> round(epsilon(one, 1e-5), 1), round(chosen([one], 1e-5, mean=20), 1), round(epsilon(20 * one, 1e-5), 1)
    (4.3, 9.1, 26.6)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.accounting.renyi import cumulant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float64]

__all__ = ["Mechanism", "chosen", "epsilon"]

POISSON, GEOMETRIC = math.inf, 1.0  # shapes of distributions
_ORDERS = np.unique(np.concatenate([1 + np.geomspace(0.01, 1e4, 120), np.arange(2.0, 65.0)]))
_HALVINGS = 200


def chosen(runs: Sequence[Sequence[Mechanism]], delta: float, mean: float, shape: float = GEOMETRIC) -> float:
    """Return the ε of choosing the best of a random number of runs.

    Args:
        runs: the mechanisms of every run that may be drawn; each run costs at most as much as the dearest of them.
        delta: above 0, below 1.
        mean: of the number of runs, at least 1.
        shape: of its distribution: infinite for Poisson, 1 for geometric, 0 for logarithmic, and between.

    Raises:
        ValueError: if there are no such runs or numbers.
    """
    if not (runs and 0 < delta < 1 and mean >= 1 and shape >= 0):
        msg = "a choice needs runs, a δ between 0 and 1, a mean of at least 1 and a shape of at least 0"
        raise ValueError(msg)
    once = np.max([_divergence(run) for run in runs], axis=0)
    if not np.any(np.isfinite(once)):
        return math.inf
    above = math.log(mean) / (_ORDERS - 1)
    if shape == POISSON:
        total = once + mean * _deltas(once, np.log1p(1 / (_ORDERS - 1))) + above
    else:
        parameter = _parameter(shape, mean)
        total = once + (1 + shape) * np.min((1 - 1 / _ORDERS) * once - math.log(parameter) / _ORDERS) + above
    bound = total + np.log1p(-1 / _ORDERS) - np.log(delta * _ORDERS) / (_ORDERS - 1)
    return max(0.0, float(np.min(bound)))


def _divergence(run: Sequence[Mechanism]) -> Vector:
    """Return a bound on a run's Rényi divergence at each order; infinite without noise."""
    total = np.zeros_like(_ORDERS)
    for step in run:
        if step.pure:
            total += step.pure * step.steps
        elif not step.noise_multiplier > 0:
            return np.full_like(_ORDERS, math.inf)
        elif step.discrete and step.sample_rate < 1:
            above = np.ceil(_ORDERS)  # the bound is known at whole orders, and divergences grow with the order
            total += step.steps * _of_step(step, above)
        else:
            total += step.steps * _of_step(step, _ORDERS)
    return total


def _of_step(step: Mechanism, orders: Vector) -> Vector:
    t = orders - 1
    return np.asarray(cumulant(step.noise_multiplier, step.sample_rate, t, discrete=step.discrete) / t)


def _deltas(once: Vector, epsilons: Vector) -> Vector:
    """Return the smallest δ̂ at each ε̂ (Canonne, Kamath and Steinke, 2020, arXiv 2004.00010, proposition 12)."""
    exponents = (_ORDERS - 1)[None, :] * (once[None, :] - epsilons[:, None] + np.log1p(-1 / _ORDERS)[None, :])
    exponents -= np.log(_ORDERS)[None, :]
    return np.asarray(np.exp(np.minimum(0.0, np.min(exponents, axis=1))))


def _parameter(shape: float, mean: float) -> float:
    """Return the parameter, rounded down, with which the truncated negative binomial distribution has this mean."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle == 0:
            break
        low, high = (middle, high) if _mean(middle, shape) >= mean else (low, middle)
    return low


def _mean(parameter: float, shape: float) -> float:
    if parameter == 1:
        return 1.0
    odds = (1 - parameter) / parameter
    if shape == 0:
        return odds / -math.log(parameter)
    return shape * odds / -math.expm1(shape * math.log(parameter))
