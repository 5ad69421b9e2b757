"""Projections are exact and add up; an honest vector passes, and a too long one passes as rarely as stated."""

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from privacy.crypto.projections import (
    _ROWS,
    _STRETCH,
    Projection,
    caught_from,
    passes_though_long,
    refused_though_short,
    stretch,
)
from privacy.errors import ConfigError
from privacy.noise.randomness import Randomness

SEED = bytes(range(32))
K = 16
VECTORS = arrays.arrays(np.int64, st.integers(0, 200), elements=st.integers(-(2**30), 2**30))


def project(blocks: list[np.ndarray], seed: bytes, projections: int) -> list[int]:
    projection = Projection(seed, projections)
    for block in blocks:
        projection.add(block)
    return projection.numbers


def _signs(size: int, projections: int) -> list[list[int]]:
    drawn = int.from_bytes(Randomness(SEED).bytes(size * projections // 8), "little")
    return [[2 * (drawn >> place * projections + j & 1) - 1 for j in range(projections)] for place in range(size)]


@given(VECTORS)
def test_projections_are_exact(vector: np.ndarray) -> None:
    signs = _signs(vector.size, K)
    expected = [sum(int(v) * row[j] for v, row in zip(vector, signs, strict=True)) for j in range(K)]
    assert project([vector.astype(np.float64)], SEED, K) == expected


@given(VECTORS, st.integers(0, 200))
def test_projections_add_up_however_the_vector_is_cut(vector: np.ndarray, cut: int) -> None:
    values = vector.astype(np.float64)
    once = project([values], SEED, K)
    assert project([values[:cut], values[cut:]], SEED, K) == once
    assert project([3 * values], SEED, K) == [3 * y for y in once]


def test_long_vectors_are_projected_block_by_block_with_one_stream() -> None:
    values = np.zeros(_ROWS + 2)
    values[_ROWS + 1] = 5
    signs = np.unpackbits(np.frombuffer(Randomness(SEED).bytes(values.size * K // 8), np.uint8), bitorder="little")
    assert project([values], SEED, K) == [10 * int(bit) - 5 for bit in signs.reshape(-1, K)[-1]]


def test_the_numbers_are_those_of_the_golden_vector() -> None:
    assert project([np.arange(100.0)], SEED, 8) == [-252, 336, 158, -204, -694, 516, 326, -506]


def test_a_vector_that_doubles_cannot_add_up_exactly_is_refused() -> None:
    with pytest.raises(ConfigError, match="too large to be projected"):
        project([np.array([2.0**52, 2.0**52])], SEED, K)


@pytest.mark.parametrize("projections", sorted(_STRETCH))
def test_the_stretch_is_the_least_that_refuses_one_honest_vector_in_a_billion(projections: int) -> None:
    assert refused_though_short(projections) <= 2**-30
    x = (_STRETCH[projections] - 1) / projections
    assert (x * np.exp(1 - x)) ** (projections / 2) > 2**-30
    # Of a long vector the sum of squares is nearly distributed as χ²: the bound is one, and no bad one.
    exact = stats.chi2.sf(_STRETCH[projections], projections)
    assert exact < refused_though_short(projections) < 30 * exact


def test_no_other_number_of_projections_is_supported() -> None:
    with pytest.raises(ConfigError, match="choose one of 32, 64, 128"):
        stretch(48)


def test_longer_vectors_pass_more_rarely() -> None:
    chances = [passes_though_long(128, times) for times in (1.0, 1.4, 1.5, 2.0, 3.0, 10.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] == chances[1] == 1.0
    assert (2 / 3) ** 128 < chances[-1] < 2**-65


@pytest.mark.parametrize(("projections", "times"), [(32, 4.5), (64, 3.8), (128, 2.3)])
def test_the_report_states_the_norm_from_which_an_update_is_caught(projections: int, times: float) -> None:
    probability = passes_though_long(projections, times)
    assert caught_from(projections, probability) == pytest.approx(times, rel=1e-5)
    assert caught_from(projections, 1e-300) == inf


@pytest.mark.parametrize("values", [[1], [1, 1], [1, 1, 1], [1, 2, 3, 4], [1] * 16, [1] + [3] * 7])
def test_the_bounds_hold_for_vectors_of_any_shape(values: list[int]) -> None:
    # Few projections, so that rare things happen often enough to be counted: over all signs, exactly.
    length = sum(v * v for v in values)
    signs = np.array([[2 * (n >> i & 1) - 1 for i in range(len(values))] for n in range(2 ** len(values))])
    z = (signs @ values) ** 2 / length
    assert z.mean() == pytest.approx(1)
    assert (z**2).mean() <= 3
    for h in (0.1, 0.5, 1.0, 3.0, 10.0):
        assert np.exp(-h * z).mean() <= 2 / 3 + np.exp(-3 * h) / 3 + 1e-12
    for h in (0.05, 0.2, 0.4):
        assert np.exp(h * z).mean() <= 1 / sqrt(1 - 2 * h) + 1e-12


def test_the_expected_number_of_vectors_passes() -> None:
    # A thousand projections of one seed are some thirty trials of 32.
    values = np.floor(np.random.default_rng(1).standard_normal(500) * 1000)
    numbers = np.array(project([values], SEED, 1024)).reshape(-1, 32)
    ratios = (numbers.astype(float) ** 2).sum(axis=1) / (values**2).sum() / 32
    assert 0.9 < ratios.mean() < 1.1
    assert ratios.max() < stretch(32) / 32
