"""ε agrees with the values that others compute, does not depend on how steps are cut, and never under-counts."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting import dp_event, pld, rdp
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from client.crosscheck import PRV
from privacy.accountants import chained
from privacy.accounting import PLD, RDP, Accountant, Mechanism, Relation, calibrate, epsilon
from privacy.errors import ConfigError

REPLACE_ONE = Relation.REPLACE_ONE
DELTA = 1e-5
# n = 500 records, batches of 32: q = 0.064, and ⌈500/32⌉ = 16 steps an epoch.
RATE, EPOCH = 32 / 500, 16
# Opacus' RDP, of real orders alone, and dp-accounting's, which takes alternating series by their absolute values.
TABLE = [
    pytest.param(1.0, 50, {PLD: 12.90, PRV: 12.91, RDP: 14.14, "Opacus": 14.06, "replace-one": 22.13},
                 id="σ=1, 50 epochs"),
    pytest.param(2.0, 50, {PLD: 4.33, PRV: 4.34, RDP: 4.71, "Opacus": 4.71, "replace-one": 8.82}, id="σ=2, 50 epochs"),
    pytest.param(1.0, 1, {PLD: 2.29, PRV: 2.30, RDP: 2.81, "Opacus": 2.81, "replace-one": 2.74}, id="σ=1, one epoch"),
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "epochs", "expected"), TABLE)
def test_the_table_of_measured_values_holds(sigma: float, epochs: int, expected: dict[Accountant | str, float]) -> None:
    steps, opacus = [Mechanism(sigma, RATE, epochs * EPOCH)], RDPAccountant()
    opacus.history = [(sigma, RATE, epochs * EPOCH)]
    found: dict[Accountant | str, float] = {each: epsilon(steps, DELTA, accountant=each) for each in (PLD, PRV, RDP)}
    found |= {"Opacus": opacus.get_epsilon(DELTA), "replace-one": epsilon(steps, DELTA, relation=REPLACE_ONE)}
    assert {name: round(each, 2) for name, each in found.items()} == expected


def test_the_rate_that_opacus_really_uses_costs_a_little_less() -> None:
    # Of 500 records in batches of 32, its loader samples each with 1/⌈500/32⌉ = 1/16, not with 32/500.
    assert round(epsilon([Mechanism(1.0, 1 / EPOCH, 50 * EPOCH)], DELTA), 2) == 12.55


def test_a_single_unsampled_step_costs_what_the_gaussian_mechanism_does() -> None:
    # Balle and Wang (2018), theorem 8, solved for ε.
    def delta(eps: float, sigma: float) -> float:
        def cdf(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        return cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * cdf(-0.5 / sigma - eps * sigma)

    for sigma in (0.7, 1.0, 3.0):
        ours = epsilon([Mechanism(sigma, 1.0, 1)], DELTA)
        assert delta(ours, sigma) <= DELTA < delta(ours - 0.01, sigma)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_where_every_record_is_taken_k_records_are_k_times_the_norm(*, discrete: bool) -> None:
    three, scaled = Mechanism(6.0, 1.0, 4, discrete), Mechanism(2.0, 1.0, 4, discrete)
    assert epsilon([three], DELTA, group=3) == pytest.approx(epsilon([scaled], DELTA), rel=1e-3)


def test_a_person_with_one_record_is_the_ordinary_case_by_the_mixture_too() -> None:
    mixture = dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 1.0], [1 - RATE, RATE])
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(mixture, 50)
    steps = [Mechanism(2.0, RATE, 50)]
    assert epsilon(steps, DELTA, group=1) == epsilon(steps, DELTA)
    assert epsilon(steps, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_several_records_cost_less_by_the_mixture_than_by_group_privacy() -> None:
    steps = [Mechanism(4.0, RATE, 50)]
    mixture, chain = epsilon(steps, DELTA, group=2), epsilon(steps, DELTA, group=2, accountant=RDP)
    assert 2 * epsilon(steps, DELTA) < mixture < chain


@given(each=st.floats(1e-6, 5), links=st.integers(1, 6))
def test_the_ends_of_a_chain_are_as_private_as_its_links_say(each: float, links: int) -> None:
    # Randomised response, whose δ at any ε is known: what `chained` chose must be within what it was given.
    asked: list[float] = []

    def spent(delta: float) -> float:
        asked.append(delta)
        return each

    assert chained(spent, DELTA, links) == pytest.approx(links * each)
    assert asked[-1] * sum(math.exp(number * each) for number in range(links)) <= DELTA * (1 + 1e-9)


def test_integer_orders_are_those_of_dp_accounting() -> None:
    orders = [*range(2, 257), 320, 384, 512, 768, 1024]
    for sigma, rate, steps in ((0.9, 0.01, 500), (2.0, 0.3, 20), (8.0, 0.9, 100)):
        theirs = rdp.RdpAccountant(orders)
        theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)), steps)
        ours = epsilon([Mechanism(sigma, rate, steps, discrete=True)], DELTA)
        assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)


def test_discrete_steps_over_all_records_cost_what_zero_concentrated_privacy_says() -> None:
    orders = [1 + number / 1000 for number in range(11, 60_000)]
    rho = 10 / (2 * 5.0**2)
    best = rdp.compute_epsilon(orders, [order * rho for order in orders], DELTA)[0]
    assert epsilon([Mechanism(5.0, 1.0, 10, discrete=True)], DELTA) == pytest.approx(best, rel=1e-4)


def test_a_mix_costs_the_smaller_of_both_ways_to_compose_it() -> None:
    discrete = [Mechanism(8.0, 1.0, 1, discrete=True)]
    for steps in (4000, 10):
        continuous = [Mechanism(1.0, 0.05, steps)]
        together = epsilon([*continuous, *discrete], DELTA, accountant=RDP)
        apart = epsilon(continuous, DELTA / 2) + epsilon(discrete, DELTA / 2)
        assert epsilon([*continuous, *discrete], DELTA) == min(together, apart)
        assert (apart < together) == (steps == 4000)


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(1.0, 0.25, 150), (8.0, RATE, 800), (3.0, RATE, 800), (0.5, 0.01, 100), (50.0, 1.0, 20)],
)
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_the_calibrated_noise_is_the_least_with_three_decimals(
    target: float, rate: float, steps: int, *, discrete: bool
) -> None:
    sigma = calibrate(target, DELTA, rate, steps, discrete=discrete)
    assert sigma == round(sigma, 3)
    assert epsilon([Mechanism(sigma, rate, steps, discrete)], DELTA) <= target
    assert epsilon([Mechanism(round(sigma - 0.001, 3), rate, steps, discrete)], DELTA) > target


@pytest.mark.parametrize(("discrete", "group"), [(False, 1), (True, 1), (True, 2)])
def test_noise_is_calibrated_to_what_is_left_beside_all_that_was_done(group: int, *, discrete: bool) -> None:
    done = [Mechanism(6.0, RATE, 200), Mechanism(20.0, 1.0, 1, discrete=True)]
    sigma = calibrate(3.0, DELTA, RATE, 100, already=done, discrete=discrete, group=group)
    least, less = (Mechanism(each, RATE, 100, discrete) for each in (sigma, round(sigma - 0.001, 3)))
    assert epsilon([*done, least], DELTA, group=group) <= 3.0 < epsilon([*done, less], DELTA, group=group)


def test_a_target_that_was_spent_already_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cost only ε 1\.0 beside what was spent before; plan fewer steps"):
        calibrate(1.0, DELTA, RATE, 10, already=[Mechanism(1.0, RATE, 500)])


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        calibrate(1.0, DELTA, 0.5, 20_000_000)
    assert str(caught.value) == (
        "no noise makes 20000000 steps at rate 0.5 cost only ε 1.0; plan fewer steps or a lower rate"
    )


@pytest.mark.timeout(10)
@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("group", [1, 20])
@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [
        pytest.param(0.01, 1.0, 1, id="hardly any noise"),
        pytest.param(1e-300, 1e-9, 1, id="the least noise"),
        pytest.param(0.02, 0.5, 1_000, id="too little noise"),
        pytest.param(0.5, 1.0, 10_000_000, id="too many steps for the noise"),
        pytest.param(1e6, 1e-9, 10**10, id="too many steps for any noise"),
    ],
)
def test_a_hostile_run_costs_an_infinite_epsilon_and_no_memory(
    sigma: float, rate: float, steps: int, group: int, *, discrete: bool
) -> None:
    # Every site computes this for a run before it can refuse it: each of these took minutes, or tens of gigabytes.
    assert epsilon([Mechanism(sigma, rate, steps, discrete)], DELTA, group=group) == math.inf


@pytest.mark.parametrize("sigma", [1e6, 1e100, 1e300, math.inf])
def test_more_noise_than_floats_can_square_is_only_much_noise(sigma: float) -> None:
    assert epsilon([Mechanism(sigma, 1.0, 100)], DELTA) < 0.01
