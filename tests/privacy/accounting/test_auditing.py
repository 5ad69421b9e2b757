"""Lower bounds on ε: right where they can be worked out by hand, below the truth as often as they say, monotone."""

from __future__ import annotations

import math
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.accounting.auditing import (
    dispersion_chance,
    gaussian_epsilon,
    largest_correlation,
    length_at_least,
    one_run_epsilon,
    rate_chance,
    scale_interval,
    separation,
    sliding_correlation,
)
from tests.privacy.consortium import few

DELTA = 1e-5
TRIALS = 400


def _by_hand(canaries: int, guesses: int, right: int, eps: float, delta: float) -> float:
    """Write the chance of theorem 5.2 out, with nothing but sums."""
    share = math.exp(eps) / (1 + math.exp(eps))
    weights = [comb(guesses, k) * share**k * (1 - share) ** (guesses - k) for k in range(guesses + 1)]
    pure = sum(weights[right:])
    steepest = max((sum(weights[right - back : right]) / back for back in range(1, right + 1)), default=0.0)
    return pure + 2 * canaries * delta * steepest


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta"),
    [(100, 50, 45, 1e-5), (100, 100, 70, 1e-4), (40, 10, 10, 1e-3), (1000, 200, 190, 1e-6), (10, 10, 9, 0.0)],
)
def test_the_one_run_bound_is_where_the_theorem_s_sum_reaches_what_may_go_wrong(
    canaries: int, guesses: int, right: int, delta: float
) -> None:
    bound = one_run_epsilon(canaries, guesses, right, delta, 0.95)
    assert bound > 0
    assert _by_hand(canaries, guesses, right, bound, delta) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("guesses", [1, 10, 100, 1000])
def test_when_all_guesses_are_right_and_delta_is_zero_the_bound_is_a_closed_form(guesses: int) -> None:
    share = 0.05 ** (1 / guesses)  # all right with a chance of 5 %
    expected = max(0.0, math.log(share / (1 - share)))
    assert one_run_epsilon(10_000, guesses, guesses, 0.0, 0.95) == pytest.approx(expected, abs=1e-6)


def test_of_500_right_guesses_at_1_000_canaries_the_one_run_bound_is_5_09() -> None:
    assert one_run_epsilon(1000, 500, 500, DELTA, 0.95) == pytest.approx(5.09, abs=0.005)


def test_random_guesses_prove_no_epsilon() -> None:
    assert one_run_epsilon(1000, 100, 50, DELTA, 0.95) == 0
    assert one_run_epsilon(1000, 100, 0, DELTA, 0.95) == 0


@few
@given(st.integers(1, 300), st.data())
def test_more_right_guesses_a_smaller_delta_or_less_confidence_never_lower_the_one_run_bound(
    guesses: int, data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    bound = one_run_epsilon(1000, guesses, right, DELTA, 0.95)
    assert bound <= one_run_epsilon(1000, guesses, right + 1, DELTA, 0.95) + 1e-9
    assert bound <= one_run_epsilon(1000, guesses, right, DELTA / 2, 0.95) + 1e-9
    assert bound <= one_run_epsilon(500, guesses, right, DELTA, 0.95) + 1e-9
    assert bound <= one_run_epsilon(1000, guesses, right, DELTA, 0.9) + 1e-9


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0, 3.0, 20.0])
def test_a_gaussian_s_epsilon_is_the_accountant_s(sigma: float) -> None:
    ours, accountant = gaussian_epsilon(1 / sigma, DELTA), epsilon([Mechanism(sigma, 1.0, 1)], DELTA)
    assert accountant - 2e-3 <= ours <= accountant + 1e-6  # which is rounded up to its interval


def test_indistinguishable_outputs_cost_nothing() -> None:
    assert gaussian_epsilon(0.0, DELTA) == 0
    assert gaussian_epsilon(1e-6, DELTA) == 0
    assert separation(500, 1000, 500, 1000, 0.95) == 0
    assert separation(1000, 1000, 0, 1000, 0.95) == 0


@few
@given(st.integers(0, 999), st.integers(0, 999))
def test_fewer_errors_less_confidence_or_more_delta_never_lower_the_gaussian_bound(alarms: int, misses: int) -> None:
    bound = separation(alarms + 1, 1000, misses, 1000, 0.95)
    assert bound <= separation(alarms, 1000, misses, 1000, 0.95)
    assert separation(alarms, 1000, misses + 1, 1000, 0.95) <= separation(alarms, 1000, misses, 1000, 0.95)
    assert bound <= separation(alarms + 1, 1000, misses, 1000, 0.9)
    assert gaussian_epsilon(bound, DELTA) >= gaussian_epsilon(bound, 2 * DELTA)


@pytest.mark.parametrize("mu", [0.3, 1.5, 4.0])
def test_the_gaussian_bound_exceeds_the_truth_no_more_often_than_stated(mu: float) -> None:
    rng = np.random.default_rng(1)
    alarms = rng.binomial(1000, math.erfc(mu / 2 / math.sqrt(2)) / 2, TRIALS)
    misses = rng.binomial(1000, math.erfc(mu / 2 / math.sqrt(2)) / 2, TRIALS)
    above = sum(separation(int(a), 1000, int(b), 1000, 0.95) > mu for a, b in zip(alarms, misses, strict=True))
    assert above <= 0.05 * TRIALS


@pytest.mark.parametrize("truth", [0.5, 2.0, 4.0])
def test_the_one_run_bound_exceeds_the_truth_no_more_often_than_stated(truth: float) -> None:
    # Randomised response is the mechanism for which the bound is tight.
    right = np.random.default_rng(2).binomial(1000, 1 / (1 + math.exp(-truth)), TRIALS)
    by_count = {int(count): one_run_epsilon(1000, 1000, int(count), 0.0, 0.95) for count in np.unique(right)}
    bounds = [by_count[int(count)] for count in right]
    assert 0.01 * TRIALS <= sum(bound > truth for bound in bounds) <= 0.08 * TRIALS
    assert np.mean(bounds) > 0.7 * truth


def test_a_deviation_is_within_its_limits_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    limits = [scale_interval(3 * rng.standard_normal(200), 0.95) for _ in range(TRIALS)]
    assert 0.92 * TRIALS <= sum(low <= 3 <= high for low, _, high in limits) <= 0.98 * TRIALS
    assert scale_interval(np.zeros(200), 0.95) == (0, 0, 0)


@pytest.mark.parametrize(("size", "trials", "rate"), [(2000, 48, 0.5), (48, 2000, 0.5), (2000, 5, 0.01), (5, 400, 0.1)])
def test_sound_samples_are_rarely_suspected_and_others_always(size: int, trials: int, rate: float) -> None:
    rng = np.random.default_rng(4)
    chances = [dispersion_chance(rng.binomial(trials, rate, size), trials, rate) for _ in range(TRIALS)]
    assert sum(chance < 0.01 for chance in chances) <= 0.03 * TRIALS
    assert min(chances) > 1e-5
    if size * rate * trials > 1000:  # where there is enough to see
        same = np.full(size, round(trials * rate))
        assert dispersion_chance(same, trials, rate) < 1e-5
        together = 4 * rng.binomial(trials // 4, rate, size)  # as if four records were always in together
        assert dispersion_chance(together, trials, rate) < 1e-5


def test_records_that_are_in_every_step_are_so_always() -> None:
    assert dispersion_chance(np.full(9, 12), 12, 1.0) == 1
    assert dispersion_chance(np.array([12, 11]), 12, 1.0) == 0
    assert (rate_chance(12, 12, 1.0), rate_chance(11, 12, 1.0)) == (1, 0)


def test_a_rate_that_is_off_is_unlikely() -> None:
    assert rate_chance(50_000, 100_000, 0.5) > 0.9
    assert rate_chance(51_000, 100_000, 0.5) < 1e-8
    assert rate_chance(49_000, 100_000, 0.5) < 1e-8


def test_repeated_noise_is_found_at_any_scale_and_independent_noise_is_not() -> None:
    rng = np.random.default_rng(5)
    rows, others = rng.standard_normal((12, 1000)), rng.standard_normal((12, 1000))
    assert largest_correlation(rows)[1] > 0.01
    assert largest_correlation(rows, others)[1] > 0.01
    others[7] = 3 - 2 * rows[4] + 0.5 * rng.standard_normal(1000)
    assert largest_correlation(rows, others)[1] < 1e-9
    rows[3] = rows[9]
    largest, chance = largest_correlation(rows)
    assert largest == pytest.approx(1.0)
    assert chance < 1e-9


def test_without_data_there_is_no_correlation() -> None:
    assert largest_correlation(np.ones((1, 50))) == (0.0, 1.0)
    assert largest_correlation(np.zeros((3, 50)))[1] == 1.0


def test_noise_that_is_used_in_two_places_is_found_at_any_shift_and_independent_noise_is_not() -> None:
    rng = np.random.default_rng(6)
    for size in (1, 2, 30, 3000):
        rows, others = rng.standard_normal((12, 1000)), rng.standard_normal((12, size))
        assert sliding_correlation(rows)[1] > 1e-4
        assert sliding_correlation(rows, others)[1] > 1e-4
        assert sliding_correlation(others, rows)[1] > 1e-4
        used = min(size, 500)
        others[:, :used] = 3 * rows[:, 400 : 400 + used]
        assert sliding_correlation(rows, others)[1] < 1e-9
        assert sliding_correlation(others, rows)[1] < 1e-9
    rows = rng.standard_normal((12, 1000))
    rows[:, 700:] = rows[:, 200:500]
    assert sliding_correlation(rows)[1] < 1e-9
    assert sliding_correlation(np.zeros((12, 5)), rows) == (0.0, 1.0)
    assert sliding_correlation(np.ones((1, 1))) == (0.0, 1.0)


@pytest.mark.parametrize(("size", "length"), [(1, 0.0), (1, 3.0), (31, 100.0), (10_000, 50.0)])
def test_a_length_reaches_its_limit_with_the_stated_probability(size: int, length: float) -> None:
    rng = np.random.default_rng(7)
    vector = np.full(size, length / np.sqrt(size))
    limits = np.array([length_at_least(vector + 2 * rng.standard_normal(size), 2.0, 0.95) for _ in range(TRIALS)])
    assert (limits > length).mean() <= 0.05
    assert length < 4 * size**0.25 or limits.mean() > 0.6 * length
    assert length_at_least(vector, 0.0, 0.95) == pytest.approx(length)
