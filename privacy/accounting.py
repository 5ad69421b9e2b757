"""What DP-SGD steps cost: ε as a view of events, never a stored number.

Steps are merged, held against what makes no sense, and composed by an accountant: see `privacy.accountants`. An ε of
many hundreds protects nobody, but its distribution would fill the memory; tens of millions of steps would take hours.
Both count as infinite, as does anything that is no number.

    >>> round(epsilon([Mechanism(noise_multiplier=2.0, sample_rate=0.064, steps=782)], delta=1e-5), 1)
    4.3
    >>> round(epsilon([Mechanism(2.0, 0.064, 782)], delta=1e-5, relation=Relation.REPLACE_ONE), 1)
    8.7
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from privacy.accountants import PLD, RDP, Accountant, Entries, Mechanism, Relation, second_moment
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PLD", "RDP", "Accountant", "Mechanism", "Relation", "calibrate", "epsilon"]

_MEANINGLESS = 1000.0  # ε
_MOST_STEPS = 10_000_000
_MOST_NOISE = 1e6  # σ beyond it counts as this, before floating point overflows
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

    Args:
        mechanisms: in any order; equal ones are merged.
        delta: above 0, below 1.
        accountant: who composes what has continuous noise. Discrete noise goes by `RDP` whoever it is.
        relation: what may differ.
        group: records that one person may have, each of them sampled by itself.
    """
    merged: dict[Mechanism, int] = {}
    for each in mechanisms:
        if not 0 <= each.steps <= _MOST_STEPS:  # NaN is not
            return math.inf
        if each.steps and each.sample_rate != 0:
            key = Mechanism(min(each.noise_multiplier, _MOST_NOISE), each.sample_rate, 1, each.discrete)
            merged[key] = merged.pop(key, 0) + each.steps  # the newest last
    return _spent(
        tuple(Mechanism(key.noise_multiplier, key.sample_rate, steps, key.discrete) for key, steps in merged.items()),
        delta, accountant, relation, group,
    )  # fmt: skip


@lru_cache(maxsize=256)
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
    # What is (ε, δ)-private by parts is so in any interleaving of them (Vadhan and Zhang 2023).
    apart = accountant.of_person(continuous, delta / 2, relation, group)
    return min(together, apart + RDP.of_person(discrete, delta / 2, relation, group))


def _makes_sense(entries: Entries, group: int) -> bool:
    for each in entries:
        if not (each.noise_multiplier > 0 and 0 < each.sample_rate <= 1 and each.steps == int(each.steps)):
            return False
    moments = (each.steps * second_moment(each.noise_multiplier, each.sample_rate, group) for each in entries)
    return sum(each.steps for each in entries) <= _MOST_STEPS and sum(moments) <= _MEANINGLESS


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
    """Return the least σ, to three decimals, with which so many steps cost at most the target ε.

    Args:
        target: ε, of these steps and all that was done already.
        delta: δ.
        sample_rate: chance of each record to be in a step.
        steps: how many.
        already: what else the target has to cover, such as all that a ledger holds.
        discrete: whether noise is on integers.
        group: records that one person may have.

    Raises:
        ConfigError: if no reasonable σ does.
    """
    done = list(already)
    low, high = 1, 1000 * _DECIMALS  # in thousandths

    def within(sigma: int) -> bool:
        planned = Mechanism(sigma / _DECIMALS, sample_rate, steps, discrete)
        return epsilon([*done, planned], delta, group=group) <= target

    # Coarse doubling first: the small σ that a plain bisection would start from are slow to account for.
    guess = 500
    while guess < high and not within(guess):
        low, guess = guess, guess * 2
    if guess >= high:
        beside = " beside what was spent before" if done else ""
        msg = (
            f"no noise makes {steps} steps at rate {sample_rate} cost only ε {target}{beside}; "
            "plan fewer steps or a lower rate"
        )
        raise ConfigError(msg)
    high = guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high / _DECIMALS
