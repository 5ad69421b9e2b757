"""Packing works block by block, and what clipping and rounding leave over is exact: over a run, nothing is lost."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.codec import packing as module
from privacy.codec.packing import BLOCK, PLAIN_MODULUS, RING_DEGREE, Packing, Profile, pack, unpack
from privacy.errors import ProtocolError
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import few, joined, packed, private, relaxed

PROFILES: tuple[Profile, ...] = get_args(Profile)
profiles = st.sampled_from(PROFILES)


def packing_of(profile: Profile, update_bound: float = 1.0, cohort: int = 3) -> Packing:
    return Packing.of(profile, cohort=cohort, update_bound=update_bound, max_weight=1.0)


def decoded(blocks: np.ndarray, size: int, weight: float, packing: Packing) -> np.ndarray:
    return unpack([blocks], size, [weight], packing).vector


# --- Blocks --------------------------------------------------------------------------------------------------------


def test_dense_holds_four_fields_of_twelve_bits() -> None:
    packing = packing_of("dense", cohort=1)
    assert (packing.fields, packing.bits, packing.slots, packing.levels) == (4, 12, 16_380, 4_095)
    values = np.full(packing.slots, -1.0)
    values[0], values[4095 + 7], values[2 * 4095], values[-1] = 1.0, 1.0, 1.0, 1.0
    (row,) = packed(values, 1.0, packing)
    top = packing.levels - 1
    nonzero = {place: int(row[place]) for place in np.flatnonzero(row)}
    assert nonzero == {0: top | top << 24, 7: top << 12, 4094: top << 36}


@pytest.mark.parametrize("profile", PROFILES)
def test_many_blocks_equal_one_block_and_leave_the_same_residual(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = packing_of(profile)
    size = (2 * BLOCK + 1) * packing.slots - 5
    values = np.random.default_rng(1).normal(size=size).astype(np.float32)
    in_blocks = pack(private(values), 1.0, packing, Randomness.seeded(1))
    streamed = list(in_blocks.blocks)
    assert [len(block) for block in streamed] == [BLOCK, BLOCK, 1]
    monkeypatch.setattr(module, "BLOCK", 1000)
    in_one = pack(private(values), 1.0, packing, Randomness.seeded(1))
    (whole,) = in_one.blocks
    np.testing.assert_array_equal(joined(streamed), whole)
    np.testing.assert_array_equal(in_blocks.residual, in_one.residual)
    one, many = (unpack(blocks, size, [1.0], packing).vector for blocks in ([whole], streamed))
    np.testing.assert_array_equal(one, many)


def test_packing_is_lazy() -> None:
    packing = packing_of("compact")
    values = np.full((BLOCK + 1) * packing.slots, 0.3, np.float32)
    update = private(values)
    blocks = pack(update, 1.0, packing, Randomness.seeded(1)).blocks
    np.testing.assert_array_equal(update.vector, values)
    next(blocks)
    done = BLOCK * packing.slots
    assert not (update.vector[:done] == values[:done]).any()
    np.testing.assert_array_equal(update.vector[done:], values[done:])


def test_there_is_no_residual_before_the_last_block_has_been_taken() -> None:
    packing = packing_of("compact")
    stream = pack(private(np.full(BLOCK * packing.slots + 1, 0.3)), 1.0, packing, Randomness.seeded(1))
    for _ in range(2):
        with pytest.raises(ProtocolError, match="take them first"):
            _ = stream.residual
        next(stream.blocks)
    assert next(stream.blocks, None) is None
    assert 0 < np.abs(stream.residual).max() <= packing.unit(1.0)


def test_the_blocks_of_an_empty_update_are_none() -> None:
    packing = packing_of("compact")
    assert list(pack(private(np.empty(0)), 1.0, packing, Randomness.fresh()).blocks) == []
    assert unpack([], 0, [1.0], packing).vector.size == 0


@pytest.mark.parametrize("bound", [0.1, 0.3, 0.7, 1e-3, 1 / 3])
@pytest.mark.parametrize("profile", PROFILES)
def test_values_at_and_beyond_a_bound_that_float32_rounds_stay_in_their_fields(profile: Profile, bound: float) -> None:
    # The float32 next to 0.1 is a little larger: clipped to it, a value lies below the lowest level.
    packing = packing_of(profile, bound, cohort=1)
    size = 20_000
    values = np.repeat(np.array([-bound, bound, -5 * bound, 5 * bound], np.float32), size // 4)
    coefficients = packed(values, 1.0, packing, Randomness.seeded(1))
    mean = decoded(coefficients, size, 1.0, packing)
    level = packing.unit(1.0)
    np.testing.assert_allclose(mean, np.clip(values, -bound, bound), rtol=0, atol=level + 2.0**-22 * bound)
    assert int(coefficients.max()) < PLAIN_MODULUS


# --- What is left over ---------------------------------------------------------------------------------------------


@relaxed
@given(
    profile=profiles,
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    weight=st.floats(0.001, 1),
    bound=st.floats(1e-6, 1e3),
    seed=st.integers(0, 1 << 32),
)
@example(profile="compact", values=[2.0, -2.0, 1.0, -1.0, 0.0], weight=1 / 3, bound=1.0, seed=0)
@example(profile="dense", values=[50.0, -50.0, 1e-30], weight=0.001, bound=1e-6, seed=0)
def test_the_residual_is_the_update_minus_its_decoded_form(
    profile: Profile, values: list[float], weight: float, bound: float, seed: int
) -> None:
    packing = packing_of(profile, bound)
    before = np.array(values, np.float32)
    stream = pack(private(before), weight, packing, Randomness.seeded(seed))
    sent = decoded(joined(stream.blocks), before.size, weight, packing)
    np.testing.assert_array_equal(stream.residual, before - sent)
    # Of a value within the bound at most a level is left over; of another, all that lies beyond it besides.
    level = packing.unit(weight)
    beyond = np.maximum(np.abs(before.astype(np.float64)) - bound, 0)
    slack = 2.0**-22 * (np.abs(before) + bound + level)
    assert (np.abs(stream.residual) <= beyond + level + slack).all()


def run(updates: np.ndarray, weight: float, packing: Packing) -> np.ndarray:
    """Send one update `(n,)` after another, each with what the last one left over; return what they decode to."""
    residual = np.zeros(updates.shape[1], np.float32)
    sent = []
    for number, values in enumerate(updates):
        stream = pack(private(values + residual), weight, packing, Randomness.seeded(number))
        sent.append(decoded(joined(stream.blocks), values.size, weight, packing))
        residual = stream.residual
    return np.array(sent, np.float64)


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize("profile", PROFILES)
def test_updates_far_below_a_level_arrive_over_many_rounds(profile: Profile, weight: float) -> None:
    rounds, packing = 400, packing_of(profile)
    level = packing.unit(weight)
    values = np.array([level / 100, -level / 37, level / 3, 0.0, 0.7])
    sent = run(np.tile(values.astype(np.float32), (rounds, 1)), weight, packing)
    np.testing.assert_allclose(sent.mean(axis=0), values, rtol=0, atol=1.01 * level / rounds + 1e-7)
    # Without what was left over, rounding alone would be off by about half a level over the root of the rounds.
    assert level / rounds < 0.2 * level / 2 / np.sqrt(rounds)


@pytest.mark.parametrize("profile", PROFILES)
def test_bursts_beyond_the_bound_arrive_in_the_rounds_after_them(profile: Profile) -> None:
    rounds, packing = 64, packing_of(profile)
    updates = np.zeros((rounds, 2), np.float32)
    updates[::8] = [5.0, -7.5]  # 0.625 and -0.94 a round
    sent = run(updates, 1.0, packing)
    level = packing.unit(1.0)
    assert np.abs(sent).max() <= 1 + level
    np.testing.assert_allclose(sent.mean(axis=0), [0.625, -0.9375], rtol=0, atol=(level + 0.01) / rounds)


@few
@given(profile=profiles, weight=st.floats(0.01, 1), seed=st.integers(0, 1 << 32))
def test_sent_updates_and_the_last_residual_add_up_to_all_updates(profile: Profile, weight: float, seed: int) -> None:
    packing, total, sent = packing_of(profile, 0.1), np.zeros(50), np.zeros(50)
    generator, residual = np.random.default_rng(seed), np.zeros(50, np.float32)
    for number in range(20):
        values = generator.normal(scale=0.1, size=50).astype(np.float32)  # a third beyond the bound
        total += values
        stream = pack(private(values + residual), weight, packing, Randomness.seeded(seed, number))
        sent += decoded(joined(stream.blocks), 50, weight, packing)
        residual = stream.residual
    np.testing.assert_allclose(sent + residual, total, rtol=0, atol=1e-4)


def test_an_update_keeps_no_more_than_one_block_of_coefficients_at_a_time() -> None:
    packing = packing_of("compact")
    blocks = pack(private(np.zeros((BLOCK + 1) * packing.slots)), 1.0, packing, Randomness.seeded(1)).blocks
    first, second = next(blocks), next(blocks)
    assert (first.shape, second.shape) == ((BLOCK, RING_DEGREE), (1, RING_DEGREE))
    assert not np.shares_memory(first, second)
