"""ε agrees with the values that others compute, does not depend on how steps are cut, and never under-counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant

from privacy.accounting import Mechanism, calibrate, epsilon
from privacy.errors import ConfigError
from tests.privacy.consortium import few

DELTA = 1e-5
# n = 500 records, batches of 32: q = 0.064, and ⌈500/32⌉ = 16 steps an epoch.
RATE, EPOCH = 32 / 500, 16
TABLE = [
    pytest.param(1.0, 50, 12.90, id="σ=1, 50 epochs"),
    pytest.param(2.0, 50, 4.33, id="σ=2, 50 epochs"),
    pytest.param(1.0, 1, 2.29, id="σ=1, one epoch"),
]


@pytest.mark.parametrize(("sigma", "epochs", "expected"), TABLE)
def test_the_table_of_measured_values_holds(sigma: float, epochs: int, expected: float) -> None:
    assert round(epsilon([Mechanism(sigma, RATE, epochs * EPOCH)], DELTA), 2) == expected


@pytest.mark.parametrize(("sigma", "epochs", "expected"), TABLE)
def test_opacus_accountants_agree(sigma: float, epochs: int, expected: float) -> None:
    prv, rdp = PRVAccountant(), RDPAccountant()
    for accountant in (prv, rdp):
        accountant.history = [(sigma, RATE, epochs * EPOCH)]
    ours = epsilon([Mechanism(sigma, RATE, epochs * EPOCH)], DELTA)
    assert abs(prv.get_epsilon(DELTA) - ours) < 0.02
    assert ours < rdp.get_epsilon(DELTA) < 1.25 * ours
    assert round(ours, 2) == expected


def test_a_single_unsampled_step_costs_what_the_gaussian_mechanism_does() -> None:
    # Balle and Wang (2018), theorem 8, solved for ε.
    def delta(eps: float, sigma: float) -> float:
        def cdf(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        return cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * cdf(-0.5 / sigma - eps * sigma)

    for sigma in (0.7, 1.0, 3.0):
        ours = epsilon([Mechanism(sigma, 1.0, 1)], DELTA)
        assert delta(ours, sigma) <= DELTA < delta(ours - 0.01, sigma)


def test_without_noise_the_cost_is_infinite_whatever_else_was_done() -> None:
    assert epsilon([Mechanism(0.0, 0.1, 1)], DELTA) == math.inf
    assert epsilon([Mechanism(-1.0, 0.1, 1)], DELTA) == math.inf
    assert epsilon([Mechanism(1.0, 0.1, 100), Mechanism(0.0, 0.1, 1)], DELTA) == math.inf


def test_no_step_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0
    assert epsilon([Mechanism(1.0, 0.1, 0)], DELTA) == 0
    assert epsilon([Mechanism(0.0, 0.1, 0)], DELTA) == 0


@few
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_how_steps_are_cut_into_entries_changes_nothing(parts: list[int]) -> None:
    whole = epsilon([Mechanism(1.5, 0.05, sum(parts))], DELTA)
    assert epsilon([Mechanism(1.5, 0.05, part) for part in parts], DELTA) == whole


def test_neither_order_nor_mixing_of_different_mechanisms_changes_anything() -> None:
    one, two = Mechanism(1.0, 0.1, 20), Mechanism(2.0, 0.05, 30)
    mixed = [Mechanism(1.0, 0.1, 5), Mechanism(2.0, 0.05, 30), Mechanism(1.0, 0.1, 15)]
    assert epsilon([one, two], DELTA) == epsilon([two, one], DELTA) == epsilon(mixed, DELTA)


def test_heterogeneous_entries_compose_as_prv_says() -> None:
    entries = [Mechanism(1.0, 0.1, 20), Mechanism(2.0, 0.05, 30), Mechanism(0.8, 0.02, 50)]
    prv = PRVAccountant()
    prv.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in entries]
    assert abs(prv.get_epsilon(DELTA) - epsilon(entries, DELTA)) < 0.02


@few
@given(
    sigma=st.floats(0.6, 4), rate=st.floats(0.01, 1), steps=st.integers(1, 200), more=st.sampled_from(["σ", "q", "n"])
)
def test_less_noise_a_higher_rate_or_more_steps_never_cost_less(
    sigma: float, rate: float, steps: int, more: str
) -> None:
    weaker = {
        "σ": Mechanism(sigma * 0.9, rate, steps),
        "q": Mechanism(sigma, min(1.0, rate * 1.1), steps),
        "n": Mechanism(sigma, rate, steps + 1),
    }[more]
    # The discretisation at 1e-3 may move each by a little.
    assert epsilon([weaker], DELTA) >= epsilon([Mechanism(sigma, rate, steps)], DELTA) - 2e-3


@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(1.0, 0.25, 150), (8.0, RATE, 800), (3.0, RATE, 800), (0.5, 0.01, 100), (50.0, 1.0, 20)],
)
def test_the_calibrated_noise_is_the_least_with_three_decimals(target: float, rate: float, steps: int) -> None:
    sigma = calibrate(target, DELTA, rate, steps)
    assert sigma == round(sigma, 3)
    assert epsilon([Mechanism(sigma, rate, steps)], DELTA) <= target
    assert epsilon([Mechanism(round(sigma - 0.001, 3), rate, steps)], DELTA) > target


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        calibrate(1.0, DELTA, 0.5, 20_000_000)
    assert str(caught.value) == (
        "no noise makes 20000000 steps at rate 0.5 cost only ε 1.0; plan fewer steps or a lower rate"
    )


@pytest.mark.timeout(10)
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
def test_a_hostile_run_costs_an_infinite_epsilon_and_no_memory(sigma: float, rate: float, steps: int) -> None:
    # Every site computes this for a run before it can refuse it: each of these took minutes, or tens of gigabytes.
    assert epsilon([Mechanism(sigma, rate, steps)], DELTA) == math.inf


@pytest.mark.parametrize("sigma", [1e6, 1e100, 1e300, math.inf])
def test_more_noise_than_floats_can_square_is_only_much_noise(sigma: float) -> None:
    assert epsilon([Mechanism(sigma, 1.0, 100)], DELTA) < 0.01
