"""Ways to compose the ε of Gaussian steps, behind one interface: privacy loss distributions, and Rényi divergences.

- `PLD`: Poisson-subsampled Gaussian steps by their privacy loss distributions (Koskela et al. 2020, Doroshenko et al.
  2022), discretised pessimistically, at 1e-3 or finer. A person with k records, each sampled by itself, is the mixture
  of Gaussians with Binomial(k, q) sensitivities (Choquette-Choo et al. 2024, arXiv 2310.15526).
- `RDP`: from above and a little looser; the only sound one for discrete noise, whose loss distribution has no closed
  form in many dimensions. Where steps are subsampled, it uses integer orders there: the formula of Mironov, Talwar and
  Zhang (2019, section 3.3) holds for the discrete Gaussian too, as E[exp(kvX/σ²)] is the same at integer shifts.

Both are Google's dp-accounting. The Gaussian approximation (GDP) under-counts and is not offered.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

import dp_accounting
import numpy as np
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution as distributions

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_INTERVAL, _INTERVAL_OF_GROUPS = 1e-3, 5e-3  # of losses, at most; the finer one takes many seconds for a mixture
_FINEST = 1e-6
_LARGEST_CHAIN = 700.0  # ε, of which floats still hold the exponential
_INTEGERS: NDArray[np.float64] = np.array([*range(2, 257), 320, 384, 512, 768, 1024], np.float64)
_SAMPLED = [*(order / 10 for order in range(20, 110)), *range(11, 64), 128, 256, 512, 1024]  # lower, it may fail
_REALS: NDArray[np.float64] = np.concatenate(
    [1 + np.arange(2, 1000) / 100, np.arange(11.0, 64.0), 2.0 ** np.arange(6, 21)]
)


class Relation(Enum):
    """What may differ: a person is added or removed, or replaced by another."""

    ADD_OR_REMOVE_ONE = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    REPLACE_ONE = dp_accounting.NeighboringRelation.REPLACE_ONE


@dataclass(frozen=True)
class Mechanism:
    """So many Poisson-sampled Gaussian steps: σ over the clipping norm, sampling rate, count."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    discrete: bool = False  # noise on integers, shared over the cohort; σ is that of the sum


Entries = tuple[Mechanism, ...]
"""What is composed: merged, each with noise and steps, and the newest last."""


class Accountant(ABC):
    """Composes entries to an upper bound of ε."""

    name: ClassVar[str]

    @abstractmethod
    def of_record(self, entries: Entries, delta: float) -> float:
        """Return the ε of adding or removing one record."""

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        """Return the ε of adding, removing or replacing a person with so many records."""
        links = 2 * group if relation is Relation.REPLACE_ONE else group
        return chained(partial(self.of_record, entries), delta, links)


class _Pld(Accountant):
    name = "PLD"

    def of_record(self, entries: Entries, delta: float) -> float:
        return float(_composed(entries, Relation.ADD_OR_REMOVE_ONE, 1).get_epsilon_for_delta(delta))

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        if group > 1 and relation is Relation.REPLACE_ONE:
            removed = _composed(entries, Relation.ADD_OR_REMOVE_ONE, group)
            return chained(removed.get_epsilon_for_delta, delta, 2)
        return float(_composed(entries, relation, group).get_epsilon_for_delta(delta))


class _Rdp(Accountant):
    name = "RDP"

    def of_record(self, entries: Entries, delta: float) -> float:
        if not any(entry.discrete for entry in entries) and any(entry.sample_rate < 1 for entry in entries):
            accountant = rdp.RdpAccountant(_SAMPLED)
            for entry in entries:
                gaussian = dp_accounting.GaussianDpEvent(entry.noise_multiplier)
                accountant.compose(dp_accounting.PoissonSampledDpEvent(entry.sample_rate, gaussian), entry.steps)
            return float(accountant.get_epsilon(delta))
        orders = _REALS if all(entry.sample_rate == 1 for entry in entries) else _INTEGERS
        total = sum((entry.steps * _divergences(entry, orders) for entry in entries), np.zeros(len(orders)))
        # Canonne, Kamath and Steinke (2020), proposition 12.
        return float(rdp.compute_epsilon(orders.tolist(), total.tolist(), delta)[0])

    def of_person(self, entries: Entries, delta: float, relation: Relation, group: int) -> float:
        if any(entry.sample_rate < 1 for entry in entries):
            return super().of_person(entries, delta, relation, group)
        links = 2 * group if relation is Relation.REPLACE_ONE else group
        scaled = [Mechanism(each.noise_multiplier / links, 1.0, each.steps, each.discrete) for each in entries]
        return self.of_record(tuple(scaled), delta)


PLD: Accountant = _Pld()
RDP: Accountant = _Rdp()


def chained(spent: Callable[[float], float], delta: float, links: int) -> float:
    """Return the ε between the ends of a chain of neighbours: k·ε at δ·(1 + e^ε + … + e^((k−1)ε)).

    That is group privacy (Vadhan 2017, lemma 2.2): loose, but it holds for whatever mechanism there is. Replacing is
    removing one and adding another.
    """
    share = delta
    while links > 1 and share > 0:
        each = float(spent(share))
        if not links * each <= _LARGEST_CHAIN:
            return math.inf
        growth = math.expm1(links * each) / math.expm1(each) if each > 0 else links
        if share * growth <= delta:
            return links * each
        share = 0.99 * delta / growth
    return float(spent(delta)) if links == 1 else math.inf


def second_moment(sigma: float, rate: float, group: int = 1) -> float:
    """Return the Rényi divergence of order 2 of one step, in closed form: ε is below its sum plus ln(1/δ)."""
    whole = 1 / sigma / sigma
    if group == 1:
        return whole if whole > _LARGEST_CHAIN else math.log1p(rate**2 * math.expm1(whole))
    if rate == 1 or group**2 * whole > 1e6:  # noqa: PLR2004 - beyond any use
        return group**2 * whole
    count = np.arange(group + 1)
    chances = _log_binomial(group, rate)
    return float(np.logaddexp.reduce(chances[:, None] + chances + whole * np.outer(count, count), axis=None))


@lru_cache(maxsize=64)
def _log_factorials(largest: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, largest + 1)))])


def _log_binomial(count: int, rate: float) -> NDArray[np.float64]:
    """Return the logarithms of the chances of 0 … count successes, at a rate below 1."""
    factorials, number = _log_factorials(count), np.arange(count + 1)
    choices = factorials[count] - factorials - factorials[::-1]
    return np.asarray(choices + number * math.log(rate) + (count - number) * math.log1p(-rate))


def _divergences(entry: Mechanism, orders: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Rényi divergences of one step: of any orders if it takes every record, else of integer ones."""
    if entry.sample_rate == 1:
        return np.asarray(orders / (2 * entry.noise_multiplier**2))
    return _sampled_divergences(entry.noise_multiplier, entry.sample_rate)


@lru_cache(maxsize=256)
def _sampled_divergences(sigma: float, rate: float) -> NDArray[np.float64]:
    def divergence(order: int) -> float:
        hits = np.arange(order + 1.0)
        moment = np.logaddexp.reduce(_log_binomial(order, rate) + hits * (hits - 1) / (2 * sigma**2))
        return float(moment) / (order - 1)

    return np.array([divergence(int(order)) for order in _INTEGERS])


def _composed(entries: Entries, relation: Relation, group: int) -> Any:  # noqa: ANN401 - a distribution; no types
    interval = _interval(entries, group)
    # All but the newest entry are what they were when its last step was charged.
    return _all(entries[:-1], relation, group, interval).compose(_steps(entries[-1], relation, group, interval))


@lru_cache(maxsize=4)
def _all(entries: Entries, relation: Relation, group: int, interval: float) -> Any:  # noqa: ANN401
    total = distributions.identity(value_discretization_interval=interval)
    for entry in entries:
        total = total.compose(_steps(entry, relation, group, interval))
    return total


def _steps(entry: Mechanism, relation: Relation, group: int, interval: float) -> Any:  # noqa: ANN401
    return _step(entry.noise_multiplier, entry.sample_rate, relation, group, interval).self_compose(entry.steps)


@lru_cache(maxsize=32)
def _step(sigma: float, rate: float, relation: Relation, group: int, interval: float) -> Any:  # noqa: ANN401
    if group == 1 or rate == 1:
        return distributions.from_gaussian_mechanism(
            sigma / group,
            value_discretization_interval=interval,
            sampling_prob=rate,
            neighboring_relation=relation.value,
        )
    chances = np.exp(_log_binomial(group, rate))
    (likely,) = np.nonzero(chances)  # the others are below any float
    return distributions.from_mixture_gaussian_mechanism(
        sigma, likely.tolist(), chances[likely].tolist(), value_discretization_interval=interval
    )


def _interval(entries: Entries, group: int) -> float:
    """Return how finely losses are told apart: to a tenth of their deviation, where many small ones are composed."""
    moments = sum(each.steps * second_moment(each.noise_multiplier, each.sample_rate, group) for each in entries)
    needed = max(_FINEST, 0.1 * math.sqrt(moments / sum(each.steps for each in entries)))
    largest = _INTERVAL if group == 1 else _INTERVAL_OF_GROUPS
    return largest / 2.0 ** max(0, math.ceil(math.log2(largest / needed)))  # of few values, for the caches
