"""Find the noise multiplier σ with which planned steps cost a given ε."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.accounting.accounting import MOST_NOISE, MOST_STEPS, Mechanism, epsilon
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

_OFTEN = 2
_DECIMALS = 1000  # a calibrated σ is rounded up to three decimals, so that people can read and repeat it


def calibrate(
    target: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    already: Iterable[Mechanism] = (),
    discrete: bool = False,
    group: int = 1,
) -> float:
    """Return the smallest σ, rounded up to three decimals, with which the steps cost at most the target ε.

    Args:
        target: ε of these steps together with `already`.
        delta: δ.
        sample_rate: probability of each record to be in a step.
        steps: the number of steps.
        already: other mechanisms that the target must cover, such as all those in a ledger.
        discrete: whether the noise is on integers.
        group: records that one person may have.

    Raises:
        ConfigError: if even σ = 10⁶ costs more; the message says how much.
    """
    done = list(already)

    def cost(thousandths: int) -> float:
        planned = Mechanism(thousandths / _DECIMALS, sample_rate, steps, discrete)
        return epsilon([*done, planned], delta, group=group)

    low, high = 0, round(MOST_NOISE * _DECIMALS)  # in thousandths
    below, above = math.inf, cost(high)
    if not above <= target:
        raise ConfigError(_refusal(target, delta, steps, sample_rate, above, epsilon(done, delta, group=group)))
    moved = 0  # how often in a row the lower end moved; negative for the higher end
    while high - low > 1:
        guess = math.isqrt(max(low, 1) * high)
        if abs(moved) < _OFTEN and 0 < above < target < below < math.inf:
            # ε is roughly a power of σ: interpolate linearly between both ends, in logarithms.
            fraction = math.log(below / target) / math.log(below / above)
            guess = round(math.exp(math.log(low) + fraction * math.log(high / low)))
        guess = min(max(guess, low + 1), high - 1)
        cost_here = cost(guess)
        if cost_here <= target:
            high, above, moved = guess, cost_here, min(moved, 0) - 1
        else:
            low, below, moved = guess, cost_here, max(moved, 0) + 1
    return high / _DECIMALS


def _refusal(target: float, delta: float, steps: int, rate: float, least: float, done: float) -> str:
    if not 0 < delta < 1:
        return f"δ must be above 0 and below 1, not {delta:g}; set delta below 1 over the number of records"
    if not done <= target:
        return (
            f"the earlier spending is ε {done:.6g} at δ {delta:g}, which exceeds the total of ε {target:g}; "
            "raise epsilon"
        )
    if not steps <= MOST_STEPS:
        return (
            f"{steps:,} steps cannot be accounted for: a run may have at most {MOST_STEPS:,}; plan fewer rounds "
            "or steps"
        )
    beside = f", including the earlier spending of ε {done:.6g}" if done else ""
    return (
        f"even with a noise_multiplier of {MOST_NOISE:,.0f}, the largest, {steps:,} steps at rate {rate:g} cost ε "
        f"{least:.6g} at δ {delta:g}{beside}, over ε {target:g}; plan fewer steps, a lower rate or a higher epsilon"
    )
