"""What every accountant promises, held by all of them; and that they agree with each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.dpsgd.crosscheck import PRV
from privacy.accounting.accounting import PLD, RDP, Accountant, Mechanism, Relation, epsilon
from tests.privacy.consortium import few

if TYPE_CHECKING:
    from collections.abc import Callable

DELTA = 1e-5
NAN = math.nan
# Each may err upwards by a little: PLD by its discretisation, PRV by the error that it is asked to stay within.
SLACK = {"PLD": 2e-3, "RDP": 1e-9, "PRV": 0.02}
ACCOUNTANTS = pytest.mark.parametrize("accountant", [PLD, RDP, PRV], ids=lambda accountant: accountant.name)

mechanisms = st.builds(Mechanism, st.floats(0.8, 4), st.floats(0.01, 1), st.integers(1, 200))


@ACCOUNTANTS
@settings(deadline=None, max_examples=4)
@given(of=mechanisms, delta=st.sampled_from([1e-5, 1e-7]), more=st.sampled_from(["σ", "q", "n", "δ"]))
def test_less_noise_a_higher_rate_more_steps_or_a_smaller_delta_never_cost_less(
    accountant: Accountant, of: Mechanism, delta: float, more: str
) -> None:
    sigma, rate, steps = of.noise_multiplier, of.sample_rate, of.steps
    weaker = {
        "σ": Mechanism(sigma * 0.9, rate, steps),
        "q": Mechanism(sigma, min(1.0, rate * 1.1), steps),
        "n": Mechanism(sigma, rate, steps + 1),
        "δ": of,
    }[more]
    costs = epsilon([weaker], delta / 10 if more == "δ" else delta, accountant=accountant)
    if math.isnan(costs):  # too much for it
        return
    assert costs >= epsilon([of], delta, accountant=accountant) - SLACK[accountant.name]


@ACCOUNTANTS
def test_no_steps_cost_no_epsilon(accountant: Accountant) -> None:
    nothing = [[], [Mechanism(1.0, 0.1, 0)], [Mechanism(0.0, 0.1, 0)], [Mechanism(1.0, 0.0, 5)]]
    nothing.append([Mechanism(0.0, 0.1, 0, discrete=True)])
    assert [epsilon(steps, DELTA, accountant=accountant) for steps in nothing] == [0.0] * len(nothing)


@ACCOUNTANTS
def test_without_noise_the_cost_is_infinite_whatever_else_was_done(accountant: Accountant) -> None:
    for discrete in (False, True):
        bare = Mechanism(0.0, 0.1, 1, discrete)
        assert epsilon([bare], DELTA, accountant=accountant) == math.inf
        assert epsilon([Mechanism(1.0, 0.1, 100), bare], DELTA, accountant=accountant) == math.inf


@ACCOUNTANTS
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [(-1.0, 0.1, 1), (NAN, 0.1, 1), (1.0, NAN, 1), (1.0, 1.1, 1), (1.0, -0.1, 1), (1.0, 0.1, -1), (1.0, 0.1, NAN),
     (1.0, 0.1, 1.5), (1.0, 0.1, math.inf)],
)  # fmt: skip
def test_invalid_mechanisms_cost_an_infinite_epsilon(
    accountant: Accountant, sigma: float, rate: float, steps: int, *, discrete: bool
) -> None:
    odd = Mechanism(sigma, rate, steps, discrete)
    assert epsilon([odd], DELTA, accountant=accountant) == math.inf
    assert epsilon([Mechanism(1.0, 0.1, 5), odd], DELTA, accountant=accountant) == math.inf


@ACCOUNTANTS
@pytest.mark.parametrize("delta", [0.0, -1e-5, NAN, 1.0, math.inf])
def test_an_invalid_delta_costs_an_infinite_epsilon(accountant: Accountant, delta: float) -> None:
    assert epsilon([Mechanism(1.0, 0.1, 5)], delta, accountant=accountant) == math.inf


@pytest.mark.parametrize("group", [0, -1, NAN])
@ACCOUNTANTS
def test_a_person_without_records_is_a_mistake_and_costs_an_infinite_epsilon(
    accountant: Accountant, group: int
) -> None:
    assert epsilon([Mechanism(1.0, 0.1, 5)], DELTA, accountant=accountant, group=group) == math.inf


@ACCOUNTANTS
@few
@given(parts=st.lists(st.integers(0, 40), min_size=1, max_size=8), discrete=st.booleans())
def test_how_steps_are_cut_into_entries_changes_nothing(
    accountant: Accountant, parts: list[int], *, discrete: bool
) -> None:
    whole = epsilon([Mechanism(1.5, 0.05, sum(parts), discrete)], DELTA, accountant=accountant)
    assert epsilon([Mechanism(1.5, 0.05, part, discrete) for part in parts], DELTA, accountant=accountant) == whole


@ACCOUNTANTS
def test_neither_order_nor_mixing_of_different_mechanisms_changes_anything(accountant: Accountant) -> None:
    one, two, three = Mechanism(1.0, 0.1, 20), Mechanism(2.0, 0.05, 30), Mechanism(3.0, 0.05, 30, discrete=True)
    mixed = [Mechanism(1.0, 0.1, 5), two, three, Mechanism(1.0, 0.1, 15)]
    costs = [
        epsilon(steps, DELTA, accountant=accountant)
        for steps in ([one, two, three], [three, two, one], [two, three, one], mixed)
    ]
    assert costs == [pytest.approx(costs[0], rel=1e-9)] * 4


@ACCOUNTANTS
def test_more_mechanisms_cost_more(accountant: Accountant) -> None:
    one = Mechanism(2.0, 0.1, 20)
    alone = epsilon([one], DELTA, accountant=accountant)
    for other in (Mechanism(3.0, 0.05, 30), Mechanism(3.0, 1.0, 1), Mechanism(3.0, 0.05, 30, discrete=True)):
        assert epsilon([one, other], DELTA, accountant=accountant) > alone


@ACCOUNTANTS
@pytest.mark.parametrize("relation", Relation, ids=lambda relation: relation.name)
@pytest.mark.parametrize("group", [1, 2])
def test_a_person_with_more_records_or_one_who_is_replaced_costs_no_less(
    accountant: Accountant, relation: Relation, group: int
) -> None:
    entries = [Mechanism(4.0, 0.1, 20)]
    costs = epsilon(entries, DELTA, accountant=accountant, relation=relation, group=group)
    assert epsilon(entries, DELTA, accountant=accountant) <= costs < math.inf
    if group > 1:
        assert costs > epsilon(entries, DELTA, accountant=accountant, relation=relation)


# --- Side by side --------------------------------------------------------------------------------------------------

GRID = [
    *([Mechanism(sigma, rate, steps)] for sigma in (0.7, 1.0, 3.0, 20.0) for rate in (0.001, 0.064, 1.0)
      for steps in (1, 50, 2000) if rate * steps / sigma**2 < 200),  # beyond, ε is of no use to anybody
    [Mechanism(1.0, 0.1, 20), Mechanism(2.0, 0.05, 30), Mechanism(0.8, 0.02, 50)],
    [Mechanism(2.5, 0.25, 100), Mechanism(4.0, 1.0, 2)],
    [Mechanism(1.1 + number / 10, 0.02 * number, 5 * number) for number in range(1, 7)],
]  # fmt: skip


@pytest.mark.parametrize("entries", GRID, ids=lambda entries: "+".join(f"{e.noise_multiplier},{e.sample_rate},{e.steps}"
                                                                        for e in entries))  # fmt: skip
def test_prv_agrees_within_two_hundredths_and_rdp_is_never_below(entries: list[Mechanism]) -> None:
    ours = epsilon(entries, DELTA)
    assert abs(epsilon(entries, DELTA, accountant=PRV) - ours) < 0.02
    assert epsilon(entries, DELTA, accountant=RDP) >= ours


@pytest.mark.parametrize(
    ("entries", "delta"),
    [
        pytest.param([Mechanism(0.1, 0.5, 100)], DELTA, id="little noise"),  # took 105 s and 6 GB
        pytest.param([Mechanism(20.0, 0.01, 1_000_000)], DELTA, id="many steps"),
        pytest.param([Mechanism(1e5, 0.5, 1)], DELTA, id="much noise"),
        pytest.param([Mechanism(1 + kind / 100, 0.1, 10) for kind in range(40)], DELTA, id="many kinds"),
        pytest.param([Mechanism(1.0, 0.1, 10)], 1e-15, id="a small δ"),
    ],
)
def test_prv_is_skipped_where_it_takes_minutes_or_gigabytes(entries: list[Mechanism], delta: float) -> None:
    assert math.isnan(epsilon(entries, delta, accountant=PRV))


def _hockey_stick(one: Callable[[float], float], two: Callable[[float], float], eps: float, points: list[float],
                  step: float) -> float:  # fmt: skip
    """How much more likely than e^ε times `two` what comes of `one` is: the δ at this ε."""
    return sum(max(0.0, one(x) - math.exp(eps) * two(x)) for x in points) * step


def _normal(x: float, mean: float, sigma: float) -> float:
    return math.exp(-(((x - mean) / sigma) ** 2) / 2)


@pytest.mark.parametrize("clip", [1, 3], ids=["whole numbers", "thirds"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_the_epsilon_of_a_discrete_step_holds_for_the_discrete_gaussian_itself(
    sigma: float, rate: float, clip: int
) -> None:
    # By brute force, over the integers: noise of σ times the clipping norm, and a record that adds the norm.
    points = list(range(-60 * clip, 61 * clip))
    total = sum(_normal(x, 0, sigma * clip) for x in points)

    def without(x: float) -> float:
        return _normal(x, 0, sigma * clip) / total

    def sampled(x: float) -> float:
        return (1 - rate) * without(x) + rate * _normal(x, clip, sigma * clip) / total

    eps = epsilon([Mechanism(sigma, rate, 1, discrete=True)], DELTA)
    for one, two in ((sampled, without), (without, sampled)):
        assert _hockey_stick(one, two, eps, list(map(float, points)), 1.0) <= DELTA


@pytest.mark.parametrize(("sigma", "rate", "group"), [(1.0, 0.1, 2), (2.0, 0.3, 3), (2.0, 1.0, 2)])
def test_the_epsilon_of_a_person_with_several_records_is_that_of_their_binomial_mixture(
    sigma: float, rate: float, group: int
) -> None:
    step = 0.01
    points = [number * step for number in range(-3000, 3000)]
    total = sum(_normal(x, 0, sigma) for x in points) * step

    def without(x: float) -> float:
        return _normal(x, 0, sigma) / total

    def sampled(x: float) -> float:
        chances = [math.comb(group, hits) * rate**hits * (1 - rate) ** (group - hits) for hits in range(group + 1)]
        return sum(chance * _normal(x, hits, sigma) for hits, chance in enumerate(chances)) / total

    eps = epsilon([Mechanism(sigma, rate, 1)], DELTA, group=group)
    both = ((sampled, without), (without, sampled))
    assert max(_hockey_stick(one, two, eps, points, step) for one, two in both) <= DELTA * 1.001  # by this sum
    assert max(_hockey_stick(one, two, eps - 0.02, points, step) for one, two in both) > DELTA
