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

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PLD", "RDP", "Accountant", "Mechanism", "Relation", "epsilon"]

MOST_STEPS = 10**9
MOST_NOISE = 1e6  # larger σ counts as this, to keep floating point from overflowing
_MOST_RECORDS = 1000  # of a person
_LEAST_NOISE = 1e-3  # σ below this counts as no noise: one step alone costs a record in it an ε of 500,000


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
    for mechanism in mechanisms:
        if mechanism.pure:
            pure += mechanism.pure * mechanism.steps if mechanism.pure > 0 else math.inf
        elif not 0 <= mechanism.steps <= MOST_STEPS:  # NaN is not
            return math.inf
        elif mechanism.steps and mechanism.sample_rate != 0:
            key = Mechanism(min(mechanism.noise_multiplier, MOST_NOISE), mechanism.sample_rate, 1, mechanism.discrete)
            merged[key] += mechanism.steps
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
    for entry in entries:
        if not (
            entry.noise_multiplier >= _LEAST_NOISE and 0 < entry.sample_rate <= 1 and entry.steps == int(entry.steps)
        ):
            return False
    return sum(entry.steps for entry in entries) <= MOST_STEPS and group <= _MOST_RECORDS
