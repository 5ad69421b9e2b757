"""ε agrees with the values that others compute, does not depend on how steps are cut, and never under-counts."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event, pld, rdp
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from client.dpsgd.crosscheck import PRV
from privacy.accounting.accountants import chained
from privacy.accounting.accounting import PLD, RDP, Accountant, Mechanism, Relation, epsilon
from privacy.accounting.calibration import calibrate
from privacy.accounting.renyi import cumulant
from privacy.errors import ConfigError

REPLACE_ONE = Relation.REPLACE_ONE
DELTA = 1e-5
# n = 500 records, batches of 32: q = 0.064, and ⌈500/32⌉ = 16 steps an epoch.
RATE, EPOCH = 32 / 500, 16
# Opacus' RDP has fewer orders than ours.
TABLE = [
    pytest.param(1.0, 50, {PLD: 12.90, PRV: 12.91, RDP: 14.05, "Opacus": 14.06, "replace-one": 22.13},
                 id="σ=1, 50 epochs"),
    pytest.param(2.0, 50, {PLD: 4.33, PRV: 4.34, RDP: 4.71, "Opacus": 4.71, "replace-one": 8.82}, id="σ=2, 50 epochs"),
    pytest.param(1.0, 1, {PLD: 2.29, PRV: 2.30, RDP: 2.81, "Opacus": 2.81, "replace-one": 2.74}, id="σ=1, one epoch"),
]  # fmt: skip


@pytest.mark.parametrize(("sigma", "epochs", "expected"), TABLE)
def test_the_table_of_measured_values_holds(sigma: float, epochs: int, expected: dict[Accountant | str, float]) -> None:
    steps, opacus = [Mechanism(sigma, RATE, epochs * EPOCH)], RDPAccountant()
    opacus.history = [(sigma, RATE, epochs * EPOCH)]
    epsilons: dict[Accountant | str, float] = {
        accountant: epsilon(steps, DELTA, accountant=accountant) for accountant in (PLD, PRV, RDP)
    }
    epsilons |= {"Opacus": opacus.get_epsilon(DELTA), "replace-one": epsilon(steps, DELTA, relation=REPLACE_ONE)}
    assert {name: round(value, 2) for name, value in epsilons.items()} == expected


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
        assert delta(ours * (1 + 1e-9), sigma) <= DELTA < delta(ours * (1 - 1e-9), sigma)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_without_sampling_k_records_count_as_k_times_the_norm(*, discrete: bool) -> None:
    three, scaled = Mechanism(6.0, 1.0, 4, discrete), Mechanism(2.0, 1.0, 4, discrete)
    assert epsilon([three], DELTA, group=3) == pytest.approx(epsilon([scaled], DELTA), rel=1e-3)


def test_a_person_with_one_record_is_the_ordinary_case_by_the_mixture_too() -> None:
    mixture = dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 1.0], [1 - RATE, RATE])
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(mixture, 50)
    steps = [Mechanism(2.0, RATE, 50)]
    assert epsilon(steps, DELTA, group=1) == epsilon(steps, DELTA)
    assert epsilon(steps, DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-4)


def test_several_records_cost_less_by_the_mixture_than_by_group_privacy() -> None:
    steps = [Mechanism(4.0, RATE, 50)]
    mixture, chain = epsilon(steps, DELTA, group=2), epsilon(steps, DELTA, group=2, accountant=RDP)
    assert 2 * epsilon(steps, DELTA) < mixture < chain


@given(link_epsilon=st.floats(1e-6, 5), links=st.integers(1, 6))
def test_group_privacy_follows_from_the_links_of_a_chain(link_epsilon: float, links: int) -> None:
    # Randomised response, whose δ at any ε is known: what `chained` chose must be within what it was given.
    deltas: list[float] = []

    def spent(delta: float) -> float:
        deltas.append(delta)
        return link_epsilon

    assert chained(spent, DELTA, links) == pytest.approx(links * link_epsilon)
    assert deltas[-1] * sum(math.exp(number * link_epsilon) for number in range(links)) <= DELTA * (1 + 1e-9)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize(("sigma", "rate"), [(0.9, 0.01), (2.0, 0.3), (8.0, 0.9), (0.4, 1e-5)])
def test_divergences_are_those_of_dp_accounting(sigma: float, rate: float, *, discrete: bool) -> None:
    orders = np.array([2, 3, 5, 20, 60] if discrete else [1.5, 2, 2.5, 7.3, 40])
    theirs = rdp.RdpAccountant(orders.tolist())
    theirs.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)))
    ours = cumulant(sigma, rate, orders - 1, discrete=discrete) / (orders - 1)
    # Of orders that are no integers, dp-accounting's alternating series is summed by absolute values: from above.
    assert np.all(ours <= theirs._rdp * (1 + 1e-9) + 1e-14)
    whole = orders == np.round(orders)
    assert ours[whole] == pytest.approx(theirs._rdp[whole], rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("sigma", [0.4, 3.0, 30.0, 1e4])
@pytest.mark.parametrize("rate", [1e-9, 1e-6, 0.3])
def test_divergences_are_never_below_the_first_terms_of_their_series(
    sigma: float, rate: float, *, discrete: bool
) -> None:
    # 1 + t(t + 1)/2·q²·(exp(1/σ²) − 1), and nothing below it: rounding took it to 0, and a million steps cost nothing.
    t = np.array([1.0, 2.0, 5.0, 40.0])
    least = np.log1p(t * (t + 1) / 2 * rate**2 * np.expm1(sigma**-2))
    assert np.all(cumulant(sigma, rate, t, discrete=discrete) > least)


def test_many_steps_at_a_small_rate_have_a_cost() -> None:
    # They came to 0: divergences were less than the rounding of their sums.
    of = [Mechanism(10**0.5, 1e-6, steps) for steps in (1_000_000, 2_000_000)]
    costs = [epsilon([mechanism], 1e-4) for mechanism in of]
    assert 6e-5 < costs[0] < 7e-5
    assert 2.06e-4 < costs[1] < 2.08e-4
    assert all(epsilon([mechanism], 1e-4, accountant=RDP) >= cost for mechanism, cost in zip(of, costs, strict=True))


def test_discrete_steps_over_all_records_cost_the_same_as_zero_concentrated_privacy() -> None:
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
    least, less = (Mechanism(noise, RATE, 100, discrete) for noise in (sigma, round(sigma - 0.001, 3)))
    assert epsilon([*done, least], DELTA, group=group) <= 3.0 < epsilon([*done, less], DELTA, group=group)


def test_a_target_that_was_spent_already_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"the earlier spending is ε 9\.\d+ at δ 1e-05, which exceeds the total of ε 1"
    ):
        calibrate(1.0, DELTA, RATE, 10, already=[Mechanism(1.0, RATE, 500)])


@pytest.mark.parametrize(
    ("target", "delta", "steps", "sentence"),
    [
        (1e-6, DELTA, 10**6, "even with a noise_multiplier of 1,000,000, the largest, 1,000,000 steps at rate 0.5 "),
        (1.0, DELTA, 2 * 10**9, "2,000,000,000 steps cannot be accounted for: a run may have at most 1,000,000,000; "),
        (1.0, 0.0, 10, "δ must be above 0 and below 1, not 0; set delta below 1 over the number of records"),
        (1.0, math.nan, 10, "δ must be above 0 and below 1, not nan"),
    ],
)  # fmt: skip
def test_a_target_that_no_noise_reaches_is_refused_with_the_reason(
    target: float, delta: float, steps: int, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        calibrate(target, delta, 0.5, steps)


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        pytest.param(0.001, DELTA, 1.0, 30, id="a small target over all records"),
        pytest.param(0.001, DELTA, 0.1, 1000, id="a small target"),
        pytest.param(1000.0, DELTA, 0.5, 100, id="a large target"),
        pytest.param(1.0, 1e-15, 0.01, 1000, id="a small δ"),
        pytest.param(1.0, 1e-300, 0.01, 1000, id="a tiny δ"),
        pytest.param(1.0, 0.5, 0.5, 10, id="a large δ"),
        pytest.param(1.0, DELTA, 1e-5, 10_000, id="a small rate"),
        pytest.param(1.0, DELTA, 0.5, 20_000_000, id="many steps"),
    ],
)
def test_noise_is_calibrated_over_the_whole_range(target: float, delta: float, rate: float, steps: int) -> None:
    sigma = calibrate(target, delta, rate, steps)
    costs = [epsilon([Mechanism(round(noise, 3), rate, steps)], delta) for noise in (sigma, sigma - 0.001)]
    assert costs[0] <= target < costs[1]


@pytest.mark.parametrize("sigma", [1e6, 1e100, 1e300, math.inf])
def test_more_noise_than_floats_can_square_is_only_much_noise(sigma: float) -> None:
    assert epsilon([Mechanism(sigma, 1.0, 100)], DELTA) < 0.01


@pytest.mark.parametrize("sigma", [9e-4, 1e-300, 0.0])
def test_negligible_noise_counts_as_none(sigma: float) -> None:
    assert epsilon([Mechanism(sigma, 1e-9, 1)], DELTA) == math.inf


def test_beyond_a_billion_steps_the_cost_is_infinite() -> None:
    assert epsilon([Mechanism(1e3, 1e-3, 10**9)], DELTA) < 1
    assert epsilon([Mechanism(1e3, 1e-3, 10**9), Mechanism(1e3, 1.0, 1)], DELTA) == math.inf
