"""Streams repeat when they are seeded, differ when anything differs, and have the distribution that they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special, stats

from privacy.noise import randomness
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


def counter_mode(key: bytes, block: int, count: int) -> bytes:
    """Return so many bytes of AES-256 in counter mode, from the given block on."""
    return Cipher(AES(key), CTR(block.to_bytes(16, "big"))).encryptor().update(bytes(count))


def test_a_stream_is_that_of_counter_mode_from_a_zero_block() -> None:
    key, sizes = bytes(range(32)), (8, 24, 1, 15, 40, 4_096, 7)
    stream = Randomness(key)
    assert b"".join(stream.bytes(size) for size in sizes) == counter_mode(key, 0, sum(sizes))


def test_a_stream_goes_on_under_the_next_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "_BY_GCM", 50)
    key, drawn = bytes(range(32)), np.empty(200 + 16, np.uint8)
    stream = Randomness(key)
    stream._stream.update_into(memoryview(bytes(200)), drawn.data)
    expected = b"".join(counter_mode(key, number << 32, 32 + 50) for number in range(3))
    assert drawn[:200].tobytes() + stream.bytes(46) == expected


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_stream_does_not_end_after_64_gib() -> None:
    key, zeros, drawn = bytes(range(32)), bytes(1 << 24), np.empty((1 << 24) + 16, np.uint8)
    stream = Randomness(key)
    for _ in range(1 << 12):
        stream._stream.update_into(memoryview(zeros), drawn.data)
    assert drawn[(1 << 24) - 64 : 1 << 24].tobytes() + stream.bytes(64) == counter_mode(key, (1 << 32) - 4, 128)


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
        expected: Any = np.full(count, np.nan, number)
        one.fill_gaussian(drawn, 0.5)
        other._kept = None
        other.fill_gaussian(expected, 0.5)
        np.testing.assert_array_equal(drawn, expected)


def by_definition(words: bytes, pairs: int, number: type[np.float32 | np.float64]) -> tuple[Any, Any]:
    """Return the samples that the cipher's bytes make, in double precision, and the radius of each."""
    width = np.dtype(number).itemsize
    lengths, turns = np.frombuffer(words[: 8 * pairs], "<i8"), np.frombuffer(words[8 * pairs :], f"<i{width}")
    radius = np.sqrt(-2 * np.log(np.abs((lengths | 1).astype(np.float64)) * 2.0**-63))
    angle = turns.astype(np.float64) * np.pi * 2.0 ** (1 - 8 * width)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]), np.tile(radius, 2)


@pytest.mark.parametrize(("number", "error"), [(np.float32, 2.0**-21), (np.float64, 2.0**-48)])
def test_samples_are_those_of_their_bytes_except_for_rounding(
    number: type[np.float32 | np.float64], error: float
) -> None:
    drawn: Any = np.empty(_BLOCK, number)
    for seed in range(20):
        Randomness.seeded(seed, "bytes").fill_gaussian(drawn)
        words = Randomness.seeded(seed, "bytes").bytes((8 + drawn.itemsize) * _BLOCK // 2)
        expected, radius = by_definition(words, _BLOCK // 2, number)
        assert (np.abs(drawn - expected) <= error * radius).all()


@pytest.mark.parametrize("deviation", [1e-30, 1e30])
def test_samples_scale_with_a_deviation_whose_square_single_precision_lacks(deviation: float) -> None:
    drawn, plain = np.empty((2, 100_000), np.float32)
    Randomness.seeded(15).fill_gaussian(drawn, deviation)
    Randomness.seeded(15).fill_gaussian(plain)
    np.testing.assert_allclose(drawn / np.float32(deviation), plain, rtol=1e-5, atol=1e-6)


class Written:
    """A stand-in for the cipher, which writes the given bytes: extreme ones are never drawn in a test."""

    def __init__(self, written: bytes) -> None:
        self._written = written

    def update_into(self, zeros: memoryview, into: memoryview) -> None:
        assert len(zeros) == len(self._written)
        into[: len(zeros)] = self._written


@pytest.mark.parametrize(("number", "error"), [(np.float32, 2.0**-21), (np.float64, 2.0**-48)])
def test_tails_and_centre_are_as_fine_as_the_words(number: type[np.float32 | np.float64], error: float) -> None:
    bits = 8 * np.dtype(number).itemsize
    lengths = [0, 1, -1, 2, 3, 1 << 20, -(1 << 40), (1 << 62) + 1, -(1 << 63), (1 << 63) - 1, (1 << 63) - (1 << 30)]
    turns = [0, 1, -1, 1 << (bits - 2), 3 - (1 << (bits - 2)), -(1 << (bits - 1)), (1 << (bits - 1)) - 1]
    pairs = [(length, turn) for length in lengths for turn in turns]
    written = np.array([length for length, _ in pairs], "<i8").tobytes()
    written += np.array([turn for _, turn in pairs], f"<i{bits // 8}").tobytes()
    stream = Randomness.seeded(1)
    drawn: Any = np.empty(2 * len(pairs), number)
    stream.__dict__["_stream"] = Written(written)
    stream.fill_gaussian(drawn)
    expected, radius = by_definition(written, len(pairs), number)
    assert np.isfinite(drawn).all()
    assert (np.abs(drawn - expected) <= error * radius).all()
    assert np.abs(drawn).max() > 9.3  # √(−2 ln 2⁻⁶³)
    assert np.hypot(*drawn.reshape(2, -1))[pairs.index(((1 << 63) - (1 << 30), 0))] > 1e-5  # no float32 holds this u


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
