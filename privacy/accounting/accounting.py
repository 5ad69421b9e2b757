"""Compute the ε of DP-SGD steps and votes from the events themselves; ε is never stored.

Equal steps are merged, checked and composed by an accountant: see `privacy.accounting.accountants`. Time and memory are
bounded for any input. ε is infinite without noise (σ below 0.001 counts as none), for more than a billion steps, and
for values that are not numbers or out of range.

    >>> round(epsilon([Mechanism(noise_multiplier=2.0, sample_rate=0.064, steps=782)], delta=1e-5), 1)
    4.3
    >>> round(epsilon([Mechanism(2.0, 0.064, 782)], delta=1e-5, relation=Relation.REPLACE_ONE), 1)
    8.7
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from privacy.accounting.accountants import PLD, RDP, Accountant, Entries, Mechanism, Relation
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PLD", "RDP", "Accountant", "Mechanism", "Relation", "calibrate", "epsilon"]

_MOST_STEPS = 10**9
_MOST_RECORDS = 1000  # of a person
_LEAST_NOISE = 1e-3  # σ below this counts as no noise: one step alone costs a record in it an ε of 500,000
_MOST_NOISE = 1e6  # larger σ counts as this, to keep floating point from overflowing
_OFTEN = 2
_DECIMALS = 1000  # a calibrated σ is rounded up to three decimals, so that people can read and repeat it


def epsilon(
    mechanisms: Iterable[Mechanism],
    delta: float,
    *,
    accountant: Accountant = PLD,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
    group: int = 1,
) -> float:
    """Return the ε of all these mechanisms together at this δ; infinite if any step had no noise.

    Randomised responses add their own ε to that of the other mechanisms, whatever the number of records per person
    (basic composition: Dwork and Roth 2014, theorem 3.16).

    Args:
        mechanisms: in any order; equal ones are merged.
        delta: above 0, below 1.
        accountant: composes the steps with continuous noise. `RDP` always composes those with discrete noise.
        relation: the adjacency.
        group: records that one person may have, each sampled independently.
    """
    merged: Counter[Mechanism] = Counter()
    pure = 0.0
    for each in mechanisms:
        if each.pure:
            pure += each.pure * each.steps if each.pure > 0 else math.inf
        elif not 0 <= each.steps <= _MOST_STEPS:  # NaN is not
            return math.inf
        elif each.steps and each.sample_rate != 0:
            key = Mechanism(min(each.noise_multiplier, _MOST_NOISE), each.sample_rate, 1, each.discrete)
            merged[key] += each.steps
    return pure + _spent(
        tuple(sorted(replace(key, steps=steps) for key, steps in merged.items())),
        delta, accountant, relation, group,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _spent(entries: Entries, delta: float, accountant: Accountant, relation: Relation, group: int) -> float:
    if not entries:
        return 0.0
    if not 0 < delta < 1 or not group >= 1 or not _makes_sense(entries, group):
        return math.inf
    discrete = tuple(entry for entry in entries if entry.discrete)
    if not discrete:
        return accountant.of_person(entries, delta, relation, group)
    together = RDP.of_person(entries, delta, relation, group)
    continuous = tuple(entry for entry in entries if not entry.discrete)
    if not continuous or accountant is RDP:
        return together
    # The (ε, δ) of two parts add up for any interleaving of their steps (Vadhan and Zhang 2023).
    apart = accountant.of_person(continuous, delta / 2, relation, group)
    return min(together, apart + RDP.of_person(discrete, delta / 2, relation, group))


def _makes_sense(entries: Entries, group: int) -> bool:
    for each in entries:
        if not (each.noise_multiplier >= _LEAST_NOISE and 0 < each.sample_rate <= 1 and each.steps == int(each.steps)):
            return False
    return sum(each.steps for each in entries) <= _MOST_STEPS and group <= _MOST_RECORDS


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

    low, high = 0, round(_MOST_NOISE * _DECIMALS)  # in thousandths
    below, above = math.inf, cost(high)
    if not above <= target:
        raise ConfigError(_refusal(target, delta, steps, sample_rate, above, epsilon(done, delta, group=group)))
    moved = 0  # how often in a row the lower end moved; negative for the higher end
    while high - low > 1:
        guess = math.isqrt(max(low, 1) * high)
        if abs(moved) < _OFTEN and 0 < above < target < below < math.inf:
            # ε is roughly a power of σ: interpolate linearly between both ends, in logarithms.
            share = math.log(below / target) / math.log(below / above)
            guess = round(math.exp(math.log(low) + share * math.log(high / low)))
        guess = min(max(guess, low + 1), high - 1)
        found = cost(guess)
        if found <= target:
            high, above, moved = guess, found, min(moved, 0) - 1
        else:
            low, below, moved = guess, found, max(moved, 0) + 1
    return high / _DECIMALS


def _refusal(target: float, delta: float, steps: int, rate: float, least: float, done: float) -> str:
    if not 0 < delta < 1:
        return f"δ must be above 0 and below 1, not {delta:g}; set delta below 1 over the number of records"
    if not done <= target:
        return (
            f"the earlier spending is ε {done:.6g} at δ {delta:g}, which exceeds the total of ε {target:g}; "
            "raise epsilon"
        )
    if not steps <= _MOST_STEPS:
        return (
            f"{steps:,} steps cannot be accounted for: a run may have at most {_MOST_STEPS:,}; plan fewer rounds "
            "or steps"
        )
    beside = f", including the earlier spending of ε {done:.6g}" if done else ""
    return (
        f"even with a noise_multiplier of {_MOST_NOISE:,.0f}, the largest, {steps:,} steps at rate {rate:g} cost ε "
        f"{least:.6g} at δ {delta:g}{beside}, over ε {target:g}; plan fewer steps, a lower rate or a higher epsilon"
    )
