"""The next round's range: a power of two that follows the last public sum, and the same at every site."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.codec.packing import Packing, pack, unpack
from privacy.codec.update import Layout, Model, Update
from privacy.noise.randomness import Randomness
from privacy.run.averaging import Averaging
from strategies.advance import average
from strategies.averaging import include, next_bound
from tests.privacy.consortium import private

CEILING = 0.75  # no power of two
sums = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8).map(
    lambda values: Update(np.array(values, np.float32))
)


def mean_of(*values: float) -> Update:
    return Update(np.array(values, np.float32))


@given(mean=sums, contributors=st.integers(1, 10_000), ceiling=st.floats(1e-6, 1e6))
@example(mean=mean_of(1e-45), contributors=1, ceiling=1e-6)
@example(mean=mean_of(0.25), contributors=1, ceiling=0.5)
def test_a_range_is_a_power_of_two_with_room_or_at_its_ceiling_or_its_floor(
    mean: Update, contributors: int, ceiling: float
) -> None:
    bound = next_bound(mean, contributors, ceiling)
    wanted = 4 * math.sqrt(contributors) * float(np.abs(mean.vector).max())
    floor = ceiling * 2.0**-20
    assert floor <= bound <= ceiling
    if bound not in {floor, ceiling}:
        assert math.frexp(bound)[0] == 0.5
        assert wanted < bound <= 2 * wanted
    elif bound == floor:
        assert wanted < floor
    else:
        assert wanted == 0 or 2 * wanted >= ceiling


def test_a_range_shrinks_and_grows_with_the_sum() -> None:
    bounds = [next_bound(mean_of(0.0, -size, size / 2), 4, CEILING) for size in (1.0, 0.01, 0.001, 0.01, 0.1, 1.0)]
    assert bounds == [CEILING, 2.0**-3, 2.0**-6, 2.0**-3, CEILING, CEILING]


def test_more_sites_get_a_wider_range() -> None:
    # Averaging over K sites shrinks their noise by the root of K.
    assert [next_bound(mean_of(0.01), sites, CEILING) for sites in (1, 4, 16, 64)] == [2.0**-4, 2.0**-3, 0.25, 0.5]


def test_a_range_does_not_shrink_below_a_millionth_of_the_ceiling() -> None:
    for tiny in (1e-45, 1e-30, 1e-9):
        assert next_bound(mean_of(tiny), 3, CEILING) == CEILING * 2.0**-20


@pytest.mark.parametrize("mean", [mean_of(), mean_of(0.0), mean_of(0.0, -0.0)])
def test_after_a_sum_of_nothing_the_range_is_the_ceiling(mean: Update) -> None:
    assert next_bound(mean, 3, CEILING) == CEILING


@given(mean=sums, contributors=st.integers(1, 100))
def test_the_same_sum_gives_the_same_bits(mean: Update, contributors: int) -> None:
    strided = Update(np.repeat(mean.vector, 2)[::2])
    bounds = {next_bound(update, contributors, CEILING).hex() for update in (mean, Update(mean.vector.copy()), strided)}
    assert len(bounds) == 1


def test_a_constant_update_beyond_the_range_arrives_because_the_range_grows() -> None:
    ceiling, rounds = 8.0, 60
    bound, weights = ceiling * 2.0**-20, [1.0, 0.5, 0.25]
    target = np.array([3.0, -0.02, 0.0, 1e-5], np.float32)
    residuals, sent, bounds = [np.zeros(4, np.float32) for _ in weights], np.zeros(4), [bound]
    for number in range(rounds):
        packing = Packing.of("dense", cohort=3, update_bound=bound, max_weight=1.0)
        total = np.zeros((1, 4096), np.uint64)
        for site, weight in enumerate(weights):
            stream = pack(private(target + residuals[site]), weight, packing, Randomness.seeded(number, site))
            (block,) = stream.blocks
            total += block
            residuals[site] = stream.residual
        mean = unpack([total], 4, weights, packing)
        sent += mean.vector
        bound = next_bound(mean, len(weights), ceiling)
        bounds.append(bound)
    # It at least doubles in a round as long as updates are cut, and sinks again when all has arrived.
    growing = bounds[: bounds.index(ceiling) + 1]
    assert all(later >= 2 * earlier for earlier, later in pairwise(growing))
    left = np.average(residuals, axis=0, weights=weights)
    np.testing.assert_allclose(sent + left, rounds * target, rtol=1e-5, atol=1e-3)
    level = Packing.of("dense", cohort=3, update_bound=ceiling, max_weight=1.0).max_error(weights)
    np.testing.assert_allclose(sent / rounds, target, rtol=0, atol=2 * level / rounds + 1e-5)


def test_the_mean_is_added_in_its_own_place() -> None:
    model = Model(np.array([1.0, 2.0], np.float32), Layout((("all", (2,)),)))
    mean = mean_of(0.5, -0.5)
    averaged = average(model, mean)
    assert averaged.vector.tolist() == [1.5, 1.5]
    assert np.shares_memory(averaged.vector, mean.vector)
    assert model.vector.tolist() == [1.0, 2.0]
    assert averaged.layout is model.layout


@given(value=st.floats(-(2.0**99), 2.0**99, width=32), count=st.integers(1, 50))
def test_the_mean_of_constants_is_the_constant(value: float, count: int) -> None:
    mean = np.zeros(3, np.float32)
    for number in range(1, count + 1):
        include(mean, np.full(3, value, np.float32), number)
    assert mean.tolist() == [value] * 3


@given(models=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4), min_size=1, max_size=20))
def test_the_mean_has_the_same_bits_wherever_the_models_are_stored(models: list[list[float]]) -> None:
    mean_, strided = np.zeros(4, np.float32), np.zeros(8, np.float32)[::2]
    for count, model in enumerate(models, start=1):
        include(mean_, np.array(model, np.float32), count)
        include(strided, np.repeat(np.array(model, np.float32), 2)[::2], count)
    np.testing.assert_allclose(mean_, np.mean(models, axis=0), rtol=1e-5, atol=1e-4)
    assert mean_.tobytes() == strided.tobytes()


def test_long_models_are_averaged_as_short_ones() -> None:
    size = (1 << 20) + 3
    mean_vector = np.zeros(size, np.float32)
    for count, value in enumerate((1.0, 2.0, 6.0), start=1):
        include(mean_vector, np.full(size, value, np.float32), count)
    assert set(mean_vector.tolist()) == {3.0}


@pytest.mark.parametrize(
    ("rounds", "share", "averaged"), [(5, 0.0, 0), (5, 0.01, 1), (5, 0.5, 3), (6, 0.5, 3), (1, 0.5, 1), (7, 1.0, 7)]
)
def test_the_given_number_of_last_rounds_is_averaged(rounds: int, share: float, averaged: int) -> None:
    included = [Averaging(share, 0.0).includes(number, rounds) for number in range(1, rounds + 1)]
    assert included == [False] * (rounds - averaged) + [True] * averaged
