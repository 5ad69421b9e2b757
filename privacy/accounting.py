"""What DP-SGD steps cost: ε as a view of events, never a stored number.

Poisson-subsampled Gaussian steps are composed by their privacy loss distributions (PLD; Koskela et al. 2020,
Doroshenko et al. 2022; in Google's dp-accounting), discretised pessimistically at 1e-3, under add-or-remove-one
adjacency. The Gaussian approximation (GDP) under-counts and is not offered. An ε of many hundreds protects nobody,
but its distribution would fill the memory; tens of millions of steps would take hours. Both count as infinite.

    >>> round(epsilon([Mechanism(noise_multiplier=2.0, sample_rate=0.064, steps=782)], delta=1e-5), 1)
    4.3
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import dp_accounting
from dp_accounting import pld

from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_INTERVAL = 1e-3
_MEANINGLESS = 1000.0  # ε
_MOST_STEPS = 10_000_000
_MOST_NOISE = 1e6  # σ beyond it counts as this, before floating point overflows
_DECIMALS = 1000  # a calibrated σ is rounded up to three decimals, so that people can read and repeat it


@dataclass(frozen=True)
class Mechanism:
    """So many Poisson-sampled Gaussian steps: σ over the clipping norm, sampling rate, count."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    discrete: bool = False  # noise on integers, a share of it from every site: see `privacy.discrete`


def epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Return the ε of all these mechanisms together at this δ; infinite if any step had no noise."""
    merged: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        merged[min(mechanism.noise_multiplier, _MOST_NOISE), mechanism.sample_rate] += mechanism.steps
    return _composed(tuple(sorted((sigma, rate, steps) for (sigma, rate), steps in merged.items() if steps)), delta)


@lru_cache(maxsize=256)
def _composed(entries: tuple[tuple[float, float, int], ...], delta: float) -> float:
    if not entries:
        return 0.0
    if any(sigma <= 0 for sigma, _, _ in entries) or sum(steps for _, _, steps in entries) > _MOST_STEPS:
        return math.inf
    if sum(_divergence(*entry) for entry in entries) > _MEANINGLESS:
        return math.inf
    accountant = pld.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=_INTERVAL
    )
    for sigma, rate, steps in entries:
        accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), steps)
    return float(accountant.get_epsilon(delta))


def _divergence(sigma: float, rate: float, steps: int) -> float:
    """Rényi divergence of order 2, in closed form (Mironov, Talwar and Zhang 2019): ε is below it plus ln(1/δ)."""
    whole = 1 / sigma / sigma
    return steps * (whole if whole > 700 else math.log1p(rate**2 * math.expm1(whole)))  # noqa: PLR2004 - e^709 overflows


def calibrate(target: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the least σ, to three decimals, with which so many steps cost at most the target ε.

    Raises:
        ConfigError: if no reasonable σ does.
    """
    low, high = 1, 1000 * _DECIMALS  # in thousandths

    def within(sigma: int) -> bool:
        return epsilon([Mechanism(sigma / _DECIMALS, sample_rate, steps)], delta) <= target

    # Coarse doubling first: the small σ that a plain bisection would start from are slow to account for.
    guess = 500
    while guess < high and not within(guess):
        low, guess = guess, guess * 2
    if guess >= high:
        msg = (
            f"no noise makes {steps} steps at rate {sample_rate} cost only ε {target}; plan fewer steps or a lower rate"
        )
        raise ConfigError(msg)
    high = guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high / _DECIMALS
