"""Streams repeat when they are seeded, differ when anything differs, and have the distribution that they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from privacy.noise.randomness import _BLOCK, Randomness
from tests.privacy.consortium import relaxed

labels = st.lists(st.text(max_size=8) | st.integers(-5, 5), max_size=3)


@relaxed
@given(seed=st.integers(), parts=labels, count=st.integers(0, 50))
def test_a_seeded_stream_repeats(seed: int, parts: list[str | int], count: int) -> None:
    first, second = (Randomness.seeded(seed, *parts) for _ in range(2))
    np.testing.assert_array_equal(first.uniform32(count), second.uniform32(count))
    np.testing.assert_array_equal(first.gaussian(count), second.gaussian(count))
    assert first.bytes(count) == second.bytes(count)


@relaxed
@given(seed=st.integers(0, 9), other=st.integers(0, 9), one=labels, two=labels)
@example(seed=1, other=1, one=["a", "b"], two=["ab"])
@example(seed=1, other=1, one=["1"], two=[1])
@example(seed=1, other=12, one=["23"], two=["3"])
@example(seed=1, other=1, one=[1, 2], two=[12])
def test_streams_of_other_seeds_or_labels_differ(
    seed: int, other: int, one: list[str | int], two: list[str | int]
) -> None:
    same = (seed, one) == (other, two)
    assert (Randomness.seeded(seed, *one).bytes(16) == Randomness.seeded(other, *two).bytes(16)) == same


def test_fresh_streams_never_repeat() -> None:
    drawn = {Randomness.fresh().bytes(16) for _ in range(1_000)}
    assert len(drawn) == 1_000


def test_a_stream_does_not_repeat_itself() -> None:
    stream = Randomness.seeded(1)
    drawn = {stream.bytes(16) for _ in range(1_000)}
    assert len(drawn) == 1_000


@relaxed
@given(st.lists(st.integers(0, 40), max_size=8))
def test_a_stream_does_not_depend_on_the_sizes_of_reads(counts: list[int]) -> None:
    one, parts = Randomness.seeded(4), Randomness.seeded(4)
    assert b"".join(parts.bytes(count) for count in counts) == one.bytes(sum(counts))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4_096, 4_097, _BLOCK - 1, _BLOCK + 1])
def test_counts_are_kept(count: int) -> None:
    stream = Randomness.fresh()
    drawn = stream.uniform32(count), stream.uniform(count), stream.gaussian(count)
    assert [array.shape for array in drawn] == [(count,)] * 3
    assert [array.dtype for array in drawn] == [np.float32, np.float64, np.float64]


def test_uniform_values_are_between_zero_and_one_on_their_grid() -> None:
    stream = Randomness.seeded(9, "uniform")
    for drawn, bits in ((stream.uniform32(500_000), 24), (stream.uniform(500_000), 53)):
        assert drawn.min() >= 0
        assert drawn.max() < 1
        scaled = drawn.astype(np.float64) * 2.0**bits
        np.testing.assert_array_equal(scaled, np.floor(scaled))
        assert stats.kstest(drawn.astype(np.float64), "uniform").pvalue > 0.01


def test_gaussian_values_pass_a_kolmogorov_smirnov_test() -> None:
    drawn = Randomness.seeded(11, "gaussian").gaussian(16 * _BLOCK)
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    # A block's first half are cosines, its second sines of the same angles: they must be uncorrelated, in size too.
    cosines, sines = drawn.reshape(16, 2, -1).swapaxes(0, 1).reshape(2, -1)
    for one, two in ((cosines, sines), (np.abs(cosines), np.abs(sines)), (drawn[:-1], drawn[1:])):
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(one.size)


def test_gaussian_variance_and_tails_are_there() -> None:
    drawn = np.abs(Randomness.seeded(12, "tails").gaussian(2_000_000))
    assert abs((drawn**2).mean() - 1) < 4 * np.sqrt(2 / drawn.size)
    for beyond in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(beyond) * drawn.size
        assert abs((drawn > beyond).sum() - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_memory_is_filled_with_the_same_values_whatever_was_drawn_before(number: type[np.float32 | np.float64]) -> None:
    one, other = Randomness.seeded(13), Randomness.seeded(13)
    for count in (3, 0, _BLOCK + 5, 2, 2 * _BLOCK, 7):
        drawn: Any = np.full(count, np.nan, number)
        one.fill_gaussian(drawn, 0.5)
        np.testing.assert_array_equal(drawn, (0.5 * other.gaussian(count)).astype(number))


@pytest.mark.parametrize("millions", [5, pytest.param(1_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_millions_of_values_have_the_moments_the_shape_and_the_tails_of_a_gaussian(millions: int) -> None:
    stream, drawn, bins = Randomness.seeded(14, "many"), np.empty(1_000_000, np.float32), 1_000
    powers, beyond, heights = np.zeros(4), np.zeros(3), np.zeros(bins)
    for _ in range(millions):
        stream.fill_gaussian(drawn)
        values = drawn.astype(np.float64)
        powers += [(values**power).sum() for power in (1, 2, 3, 4)]
        beyond += [np.count_nonzero(np.abs(drawn) > limit) for limit in (3, 4, 5)]
        heights += np.bincount((special.ndtr(values) * bins).astype(np.int64), minlength=bins)
    count = millions * drawn.size
    # The variances of a Gaussian's powers 1 to 4.
    for moment, mean, variance in zip(powers / count, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - mean) < 4.5 * np.sqrt(variance / count)
    for share, limit in zip(beyond, (3, 4, 5), strict=True):
        expected = 2 * stats.norm.sf(limit) * count
        assert abs(share - expected) < 4.5 * np.sqrt(expected)
    assert stats.chisquare(heights).pvalue > 0.001
