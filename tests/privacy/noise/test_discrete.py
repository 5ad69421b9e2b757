"""The noise on integers has the exact distribution, whoever decides: doubles, or as many digits as it takes."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from privacy.noise import discrete
from privacy.noise.discrete import discrete_gaussian, reach
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import few, relaxed

GOLDEN = {
    1: [1, -1, -1, 0, 1, 1, 1, -1],
    64: [-6, 14, -5, -3, 13, -8, -4, 0],
    10**10: [77350, -102723, -41162, -76163, -144971, -107537, -42006, 64388],
}
"""The first numbers under `Randomness.seeded(7, "golden", variance)`: another version must draw the same."""

variances = st.one_of(st.integers(1, 500), st.integers(1, 1 << 50))


def power(exponent: Fraction) -> Fraction:
    """e to the minus exponent, to 100 digits."""
    with localcontext() as context:
        context.prec = 100
        return Fraction((-Decimal(exponent.numerator) / exponent.denominator).exp())


@pytest.mark.parametrize("variance", [1, 2, 64, 1_000])
def test_every_integer_comes_as_often_as_it_should(variance: int) -> None:
    count, most = 400_000, reach(variance)
    drawn = discrete_gaussian(Randomness.seeded(3, "chi", variance), count, variance)
    values = np.arange(-most, most + 1)
    weights = np.exp(-(values**2) / (2 * variance))
    expected = count * weights / weights.sum()
    counts = np.bincount(drawn + most, minlength=values.size)
    often = expected >= 10
    rest = [counts[~often].sum(), expected[~often].sum()]
    result = stats.chisquare([*counts[often], rest[0]], [*expected[often], rest[1]])
    assert result.pvalue > 0.001


@pytest.mark.parametrize("variance", [64, 12_345, 10**10])
def test_mean_variance_and_tails_are_those_of_a_gaussian(variance: int) -> None:
    count = 500_000
    drawn = discrete_gaussian(Randomness.seeded(5, "moments", variance), count, variance) / np.sqrt(variance)
    assert abs(drawn.mean()) < 4 / np.sqrt(count)
    assert abs((drawn**2).mean() - 1) < 4 * np.sqrt(2 / count)
    # Near a tail's edge an integer more or less counts: half a step is not a deviation.
    step = 0.5 / np.sqrt(variance)
    for beyond in (2.0, 3.0, 4.0):
        beyond_count = (np.abs(drawn) > beyond).sum()
        high, low = (2 * count * stats.norm.sf(beyond + off) for off in (-step, step))
        assert low - 5 * np.sqrt(low) <= beyond_count <= high + 5 * np.sqrt(high)


@few
@given(variance=variances, count=st.integers(0, 300), seed=st.integers(0, 1 << 32))
def test_it_has_the_requested_number_of_integers_within_reach_and_repeats_only_under_a_seed(
    variance: int, count: int, seed: int
) -> None:
    drawn = discrete_gaussian(Randomness.seeded(seed), count, variance)
    assert drawn.shape == (count,)
    assert drawn.dtype == np.int64
    assert np.abs(drawn).max(initial=0) <= reach(variance)
    assert reach(variance) ** 2 <= 144 * variance < (reach(variance) + 1) ** 2
    np.testing.assert_array_equal(drawn, discrete_gaussian(Randomness.seeded(seed), count, variance))


@pytest.mark.parametrize("variance", GOLDEN)
def test_a_seed_gives_what_it_always_gave(variance: int) -> None:
    drawn = discrete_gaussian(Randomness.seeded(7, "golden", variance), 8, variance)
    assert drawn.tolist() == GOLDEN[variance]


@pytest.mark.parametrize("variance", [1, 64, 10**10])
def test_decisions_in_doubles_equal_those_of_exact_arithmetic(variance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = discrete_gaussian(Randomness.seeded(9, variance), 1_000, variance)
    monkeypatch.setattr(discrete, "_UNSURE", 2.0)  # nothing is clear
    np.testing.assert_array_equal(quick, discrete_gaussian(Randomness.seeded(9, variance), 1_000, variance))


@relaxed
@given(variance=variances, data=st.data())
def test_the_error_of_doubles_is_well_below_the_assumed_bound(variance: int, data: st.DataObject) -> None:
    value = data.draw(st.integers(-reach(variance), reach(variance)))
    quick = float(np.exp(-(np.array([value]) ** 2) / (2 * variance))[0])
    assert abs(Fraction(quick) - power(Fraction(value**2, 2 * variance))) < Fraction(discrete._UNSURE) / 16


@relaxed
@given(value=st.integers(1, 120), variance=st.integers(100, 10_000), seed=st.integers(0, 1 << 32))
@example(value=1, variance=10_000, seed=0)
def test_undecided_draws_are_decided_by_more_bits(value: int, variance: int, seed: int) -> None:
    exponent = Fraction(value**2, 2 * variance)
    exact = power(exponent)
    first = int(exact * (1 << 53))  # the very first bits of the power: 53 bits cannot tell
    more = int.from_bytes(Randomness.seeded(seed).bytes(8), "little")
    expected = Fraction(first << 64 | more, 1 << 117) < exact
    assert discrete._is_below(first, exponent, Randomness.seeded(seed)) == expected
    assert discrete._is_below(first - 1, exponent, Randomness.seeded(seed))
    assert not discrete._is_below(first + 1, exponent, Randomness.seeded(seed))


def test_zero_is_always_kept_even_where_all_first_bits_are_ones() -> None:
    assert discrete._is_below((1 << 53) - 1, Fraction(0), Randomness.seeded(1))


@pytest.mark.parametrize("variance", [1, 2, 64, 65, 1_000, 10**6])
def test_the_truncated_tail_is_below_two_to_the_minus_hundred(variance: int) -> None:
    values = np.arange(20 * reach(variance) // 12)
    weights = np.exp(-(values**2) / (2 * variance))
    assert weights[reach(variance) + 1 :].sum() / weights.sum() < 2.0**-100
