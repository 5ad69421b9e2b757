"""ε by privacy loss distributions: never below what is true, close to it, and in bounded work whatever is asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as distributions
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import fft
from scipy.fft import next_fast_len

from privacy.accounting import losses
from privacy.accounting.accountants import gaussian
from privacy.accounting.accounting import PLD, Mechanism, Relation, epsilon
from privacy.accounting.steps import removed
from tests.privacy.consortium import few

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

DELTA = 1e-5
KINDS = [
    [Mechanism(0.6, 0.02, 10)],
    [Mechanism(1.0, 0.064, 50)],
    [Mechanism(1.0, 0.9, 1)],
    [Mechanism(3.0, 0.5, 30), Mechanism(1.5, 0.01, 20)],
]


def theirs(mechanisms: Sequence[Mechanism], relation: Relation, *, above: bool) -> Callable[[float], float]:
    """Return dp-accounting's bound of ε by δ, from above or below."""
    composed: Any = None
    for mechanism in mechanisms:
        step = distributions.from_gaussian_mechanism(
            mechanism.noise_multiplier,
            pessimistic_estimate=above,
            use_connect_dots=above,
            value_discretization_interval=1e-3 if above else 2e-4,
            sampling_prob=mechanism.sample_rate,
            neighboring_relation=dp_accounting.NeighboringRelation[relation.name],
        ).self_compose(mechanism.steps)
        composed = composed.compose(step) if composed else step
    return lambda delta: float(composed.get_epsilon_for_delta(delta))


@pytest.mark.parametrize("mechanisms", KINDS, ids=["one", "two", "three", "mixed"])
@pytest.mark.parametrize("relation", Relation, ids=lambda relation: relation.name)
def test_epsilon_is_between_dp_accountings_bounds(relation: Relation, mechanisms: list[Mechanism]) -> None:
    below, above = (theirs(mechanisms, relation, above=above) for above in (False, True))
    for delta in (1e-9, 1e-2):
        ours = epsilon(mechanisms, delta, relation=relation)
        assert below(delta) <= ours + 1e-9
        assert ours <= above(delta) * (1 + 2e-4) + 1e-5


@pytest.mark.parametrize("delta", [0.1, 1e-5, 1e-15, 1e-30, 1e-100, 1e-300])
@pytest.mark.parametrize(("distance", "steps"), [(0.01, 1), (0.3, 100), (1.0, 1), (2.0, 30), (10.0, 1000)])
def test_steps_over_all_records_come_to_the_closed_form_at_any_delta(distance: float, steps: int, delta: float) -> None:
    exact = gaussian(distance, delta)
    ours = losses.epsilon_of([(removed(math.sqrt(steps) / distance, 1.0, 1), steps)], delta)
    assert exact <= ours * (1 + 1e-9) + 1e-12
    assert ours <= exact * (1 + 2e-4) + 1e-12


@few
@example(Mechanism(10**-2.25, 1e-2, 1), 1e-4)
@example(Mechanism(10**-1.1875, 10**-1.25, 10), 10**-1.5)  # one direction's losses are all but equal
@given(
    of=st.builds(
        Mechanism,
        st.floats(-2.5, 4).map(lambda power: 10**power),
        st.floats(-9, 0).map(lambda power: 10**power),
        st.integers(0, 6).map(lambda power: 10**power),
    ),
    delta=st.floats(-300, -0.1).map(lambda power: 10**power),
)
def test_epsilon_is_finite_and_rises_with_steps_and_rate_and_falls_with_noise_and_delta(
    of: Mechanism, delta: float
) -> None:
    sigma, rate, steps = of.noise_multiplier, of.sample_rate, of.steps
    cost = epsilon([of], delta)
    # Rounding may be a good part of a bound for a smaller δ, where losses are rare beside many small ones, and for an ε
    # that protects nobody.
    loose = 1e-2 if delta > 1e-12 and cost < 100 else 0.5
    assert 0 <= cost < math.inf
    for weaker, less in (
        (Mechanism(sigma * 0.8, rate, steps), delta),
        (Mechanism(sigma, min(1.0, rate * 1.25), steps), delta),
        (Mechanism(sigma, rate, steps * 2), delta),
        (of, delta**1.2),
    ):
        assert epsilon([weaker], max(less, 5e-324)) >= cost * (1 - loose) - 1e-6


@pytest.mark.parametrize(
    ("rare", "share"),
    [(Mechanism(0.05, 1e-7, 50), 0.5), (Mechanism(0.02, 1e-7, 99), 0.01), (Mechanism(0.1, 1e-7, 10), 0.9)],
)
def test_large_losses_that_are_rarer_than_delta_cost_no_more_than_the_delta_that_they_take(
    rare: Mechanism, share: float
) -> None:
    common = [Mechanism(5.0, 0.999, 10)]
    assert epsilon(common, DELTA) <= epsilon([*common, rare], DELTA) <= epsilon(common, share * DELTA) * 1.002


@pytest.mark.parametrize(
    ("mechanism", "low", "high"),
    [
        pytest.param(Mechanism(0.268, 1e-4, 100), 8.5788, 8.5795, id="by dp-accounting: 8.5789 to 8.5791"),
        pytest.param(Mechanism(0.6, 1e-5, 10_000), 0.0140, 0.0145, id="by PRV: 0.0140 to 0.0240"),
        pytest.param(Mechanism(0.394, 1e-5, 10_000), 0.99, 1.0025, id="by dp-accounting, in minutes: 1.001"),
        pytest.param(Mechanism(0.001, 1e-6, 5), 0, 1e-5, id="rarer than δ"),
        pytest.param(Mechanism(0.5, 0.01, 1_000_000), 1617, 1619, id="large"),
        pytest.param(Mechanism(0.01, 0.5, 1), 5409.07, 5410, id="closed form, at twice δ, less ln 2: 5409.07"),
    ],
)
def test_rare_and_large_losses_cost_the_same_as_other_accountants_find(
    mechanism: Mechanism, low: float, high: float
) -> None:
    assert low <= epsilon([mechanism], DELTA) <= high


@pytest.mark.parametrize("count", [1, 7, 150, 10_000, 10_000_000])
@pytest.mark.parametrize("width", [0.3, 5.0, 300.0])
def test_the_rounding_of_transforms_is_added_to_epsilon(width: float, count: int) -> None:
    # Against the same transforms in extended precision, with one step of another kind, whose losses are rare and large.
    points = next_fast_len(30_000, real=True)
    place = np.arange(points)
    bell = np.exp(-(((place - 200) / width) ** 2) / 2)
    rare = np.where(place == 0, 1.0, 0.0) + 1e-9 * np.where(place == 9000, 1.0, 0.0)
    kinds = [(bell / np.sum(bell), count), (rare / np.sum(rare), 1)]
    product, exact = losses._Product.of_nothing(points), np.ones(points // 2 + 1, np.clongdouble)
    for masses, often in kinds:
        product = product.times(masses, often)
        exact *= fft.rfft(masses.astype(np.longdouble)) ** often
    composed = product.masses(points)
    assert np.all(composed >= fft.irfft(exact, points))
    assert np.sum(composed) < 1 + 1e-4


def test_losses_that_are_rare_beside_many_small_ones_are_neither_smeared_nor_drowned() -> None:
    # dp-accounting says 0.2646 to 0.2650; on a grid that suits the large losses alone it was 0.48.
    assert 0.2645 <= epsilon([Mechanism(0.8796732, 3.5345e-4, 13)], 2.96158e-11) <= 0.266
    # On a fine grid what it rounds added up, to 1.10.
    assert epsilon([Mechanism(1.0, 0.001, 10)], 1e-14) <= 0.874
    # dp-accounting has δ 0.985e-13 to 0.996e-13 at 0.0675; where only one ε was aimed at, it was 0.35.
    assert 0.0674 <= epsilon([Mechanism(1.0, 1e-4, 10)], 1e-13) <= 0.0677


@pytest.mark.parametrize(
    ("of", "low", "high"),
    [
        pytest.param(Mechanism(0.5, 1e-6, 10), 0.0, 1e-9, id="ten chances of 1e-6 are within δ"),
        pytest.param(Mechanism(1724.0, 1.0, 1), 0.00099, 0.00101, id="a thousandth, in closed form"),
    ],
)
def test_tiny_costs_are_neither_lost_nor_made_up(of: Mechanism, low: float, high: float) -> None:
    assert low <= epsilon([of], DELTA) <= high


@pytest.mark.parametrize("group", [1, 20])
@pytest.mark.parametrize(
    "mechanisms",
    [
        pytest.param([Mechanism(0.01, 0.999, 1)], id="hardly any noise"),
        pytest.param([Mechanism(0.6, 1e-5, 10_000)], id="a small rate"),  # took 55 s and 2.6 GB
        pytest.param([Mechanism(0.02, 0.5, 1_000)], id="too little noise"),
        pytest.param([Mechanism(0.5, 0.9, 10_000_000)], id="too many steps for the noise"),
        pytest.param([Mechanism(1e6, 1e-9, 10**9)], id="a billion steps"),
        pytest.param([Mechanism(1 + kind / 7, 0.1, 1 + kind) for kind in range(20)], id="twenty kinds"),
    ],
)
def test_every_query_takes_bounded_work(
    mechanisms: list[Mechanism], group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every site computes this for a run before it can refuse it.
    sizes: list[int] = []

    def counted(points: int, *, real: bool) -> int:
        sizes.append(points)
        return int(next_fast_len(points, real=real))

    monkeypatch.setattr(fft, "next_fast_len", counted)
    assert 0 <= PLD.of_person(tuple(mechanisms), DELTA, Relation.ADD_OR_REMOVE_ONE, group) < math.inf
    assert len(sizes) <= 16
    assert max(sizes) <= losses.POINTS + 2


def test_a_person_may_have_a_thousand_records() -> None:
    # All of them in every step are a thousand times the norm; in hardly any step, a few.
    assert epsilon([Mechanism(1e3, 0.999999, 10)], DELTA, group=1000) == pytest.approx(
        gaussian(10**0.5, DELTA), rel=1e-3
    )
    assert epsilon([Mechanism(2.0, 1e-6, 100)], DELTA, group=1000) < 0.1
