"""Compose the ε of Gaussian steps, by privacy loss distributions or by Rényi divergences, behind one interface.

- `PLD`: privacy loss distributions of Poisson-subsampled Gaussian steps (`privacy.accounting.losses`). All steps over
  all records are together one Gaussian. A person with k records, each sampled independently, is a mixture of Gaussians
  with Binomial(k, q) sensitivities (Choquette-Choo et al. 2024, arXiv 2310.15526).
- `RDP`: a slightly looser upper bound (`privacy.accounting.renyi`), and the only sound one here for discrete noise,
  whose loss distribution has no closed form in many dimensions.

Tests compare both with Google's dp-accounting; a site's `ledger show` compares PLD with RDP and with Opacus's PRV. The
Gaussian approximation (GDP) under-counts and is not offered.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from scipy.special import log_ndtr

from privacy.accounting import losses, renyi, steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_LARGEST_CHAIN = 700.0  # an ε whose exponential still fits into a float
_HALVINGS = 200
_MANY_STEPS = 1_000_000  # from here the grid of losses is so coarse that RDP may be tighter


class Relation(Enum):
    """Adjacency: a person is added or removed, or replaced by another."""

    ADD_OR_REMOVE_ONE = auto()
    REPLACE_ONE = auto()


@dataclass(frozen=True, order=True)
class Mechanism:
    """A number of Poisson-sampled Gaussian steps: σ over the clipping norm, sampling rate, count."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    discrete: bool = False  # noise on integers, shared over the cohort; σ is that of the sum
    pure: float = 0.0  # instead of noise: the ε, at δ = 0, of one randomised response

    @classmethod
    def response(cls, epsilon: float, count: int = 1) -> Self:
        """Return `count` randomised responses (`privacy.run.votes`). They need no accountant: their ε add up."""
        return cls(0.0, 1.0, count, pure=epsilon)


Entries = tuple[Mechanism, ...]
"""The mechanisms to compose: equal ones merged, each with noise and steps."""


class Accountant(ABC):
    """Composes entries to an upper bound on ε."""

    name: ClassVar[str]

    @abstractmethod
    def of_record(self, entries: Entries, delta: float) -> float:
        """Return the ε of adding or removing one record."""

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        """Return the ε of adding or removing, or of replacing, a person with `group` records."""
        links = 2 * group if relation is Relation.REPLACE_ONE else group
        return chained(partial(self.of_record, entries), delta, links)


class _Pld(Accountant):
    name = "PLD"

    def of_record(self, entries: Entries, delta: float) -> float:
        return self.of_person(entries, delta, Relation.ADD_OR_REMOVE_ONE, 1)

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        distance = 2 * group if relation is Relation.REPLACE_ONE else group
        squares = math.fsum(entry.steps / entry.noise_multiplier**2 for entry in entries if entry.sample_rate == 1)
        sampled = [entry for entry in entries if entry.sample_rate < 1]
        if not sampled:
            return gaussian(distance * math.sqrt(squares), delta)
        if relation is Relation.REPLACE_ONE and group > 1:
            return chained(partial(self.of_person, entries, relation=Relation.ADD_OR_REMOVE_ONE, group=group), delta, 2)
        epsilon = 0.0
        for pair in (steps.replaced,) if relation is Relation.REPLACE_ONE else (steps.removed, steps.added):
            pairs = [(pair(entry.noise_multiplier, entry.sample_rate, group), entry.steps) for entry in sampled]
            if squares:
                pairs.append((pair(1 / math.sqrt(squares), 1.0, group), 1))
            epsilon = max(epsilon, losses.epsilon_of(pairs, delta))
        if math.isinf(epsilon) or sum(entry.steps for entry in entries) > _MANY_STEPS:
            return min(epsilon, RDP.of_person(entries, delta, relation, group))
        return epsilon


class _Rdp(Accountant):
    name = "RDP"

    def of_record(self, entries: Entries, delta: float) -> float:
        return renyi.epsilon_of(
            [(entry.noise_multiplier, entry.sample_rate, entry.steps, entry.discrete) for entry in entries], delta
        )

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        if any(entry.sample_rate < 1 for entry in entries):
            return super().of_person(entries, delta, relation, group)
        links = 2 * group if relation is Relation.REPLACE_ONE else group
        scaled = [Mechanism(entry.noise_multiplier / links, 1.0, entry.steps, entry.discrete) for entry in entries]
        return self.of_record(tuple(scaled), delta)


PLD: Accountant = _Pld()
RDP: Accountant = _Rdp()


def chained(spent: Callable[[float], float], delta: float, links: int) -> float:
    """Return the ε between the ends of a chain of neighbours: k·ε at δ·(1 + e^ε + … + e^((k−1)ε)).

    This is group privacy (Vadhan 2017, lemma 2.2): loose, but valid for any mechanism. To replace is to remove one and
    add another.
    """
    fraction = delta
    while links > 1 and fraction > 0:
        epsilon = float(spent(fraction))
        if not links * epsilon <= _LARGEST_CHAIN:
            return math.inf
        growth = math.expm1(links * epsilon) / math.expm1(epsilon) if epsilon > 0 else links
        if fraction * growth <= delta:
            return links * epsilon
        fraction = 0.99 * delta / growth
    return float(spent(delta)) if links == 1 else math.inf


def gaussian(distance: float, delta: float) -> float:
    """Return ε, rounded up, of N(0, 1) moved by `distance` (Balle and Wang 2018, theorem 8)."""

    def within(eps: float) -> bool:
        over, under = (float(log_ndtr(side * distance / 2 - eps / distance)) for side in (1, -1))
        excess = under + eps - over  # of the logarithms
        return excess >= 0 or over + math.log(-math.expm1(excess)) <= math.log(delta)

    low, high = 0.0, distance * (distance + 40 - math.log(delta))
    if within(0.0):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high
