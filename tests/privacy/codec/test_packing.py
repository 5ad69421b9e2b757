"""Every update within the bounds survives packing; nothing ever carries; what cannot be a sum is refused."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE, Packing, Profile, pack, unpack
from privacy.codec.update import PrivateUpdate, Update
from privacy.errors import ConfigError, MalformedError
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import CHARGE, blocks_of, packed, private, relaxed

MOST = {"compact": 4_368, "precise": 1_118_480, "dense": 272}  # sites, with at least 16 levels each
BITS = {"compact": 16, "precise": 24, "dense": 12}
PROFILES: tuple[Profile, ...] = get_args(Profile)
profiles = st.sampled_from(PROFILES)
seeds = st.integers(0, 1 << 32)


def packing_of(profile: Profile, cohort: int = 3, update_bound: float = 1.0, max_weight: float = 1.0) -> Packing:
    return Packing.of(profile, cohort=cohort, update_bound=update_bound, max_weight=max_weight)


@st.composite
def sizes(draw: st.DrawFn) -> int:
    """From none to three ciphertexts' worth, and the places where a ciphertext is exactly full."""
    full = draw(st.sampled_from([4095, 2 * 4095, 3 * 4095]))
    return draw(st.one_of(st.integers(0, 40), st.integers(0, 3 * full), st.sampled_from([full - 1, full, full + 1])))


@relaxed
@given(
    profile=profiles,
    size=sizes(),
    spare=st.integers(0, 500),
    shares=st.lists(st.floats(0.001, 1), min_size=1, max_size=5),
    bound=st.floats(1e-6, 1e6),
    heaviest=st.floats(1e-3, 1e3),
    seed=seeds,
)
@example(profile="compact", size=20, spare=0, shares=[1.0], bound=1e-30, heaviest=1.0, seed=0)
@example(profile="precise", size=20, spare=0, shares=[1.0], bound=1e30, heaviest=1.0, seed=0)
def test_the_weighted_mean_comes_back_within_the_stated_error(
    profile: Profile, size: int, spare: int, shares: list[float], bound: float, heaviest: float, seed: int
) -> None:
    weights = [share * heaviest for share in shares]
    packing = packing_of(profile, min(len(weights) + spare, MOST[profile]), bound, heaviest)
    generator = np.random.default_rng(seed)
    # About a third of the values lie beyond the bound.
    vectors = [(generator.normal(size=size) * bound).astype(np.float32) for _ in weights]
    total = np.zeros((packing.ciphertexts(size), RING_DEGREE), np.uint64)
    for number, (vector, weight) in enumerate(zip(vectors, weights, strict=True)):
        total += packed(vector, weight, packing, Randomness.seeded(seed, number))
    mean = unpack(blocks_of(total), size, weights, packing).vector
    weighted = [weight * vector.astype(np.float64) for weight, vector in zip(weights, vectors, strict=True)]
    expected = sum(np.clip(update, -bound * heaviest, bound * heaviest) for update in weighted) / sum(weights)
    error = packing.max_error(weights)
    rounding = 2.0**-22 * (bound + error)  # of bound and result to float32
    assert mean.shape == (size,)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=error + rounding)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("value", [-1.0, -0.73, -0.123_456_7, 0.0, 1e-5, 0.333_333_3, 0.999_99, 1.0])
def test_rounding_is_unbiased(profile: Profile, value: float) -> None:
    size, packing = 200_000, packing_of(profile)
    coefficients = packed(np.full(size, value), 1.0, packing, Randomness.seeded(1, repr(value), profile))
    mean = unpack(blocks_of(coefficients), size, [1.0], packing).vector.astype(np.float64).mean()
    level = 2 / (packing.levels - 1)
    # A rounded value is off by at most half a level as a standard deviation; five of the mean's. float32 adds its own.
    assert abs(mean - np.float32(value)) < 5 * level / 2 / np.sqrt(size) + 2.0**-24


@relaxed
@given(profile=profiles, data=st.data())
def test_no_field_carries_and_no_sum_wraps_whatever_the_cohort(profile: Profile, data: st.DataObject) -> None:
    cohort = data.draw(st.one_of(st.integers(1, 20), st.integers(1, MOST[profile]), st.just(MOST[profile])))
    packing = packing_of(profile, cohort)
    top = packing.levels - 1
    most = sum(top << packing.bits * field for field in range(packing.fields))
    extreme = np.array([1.0, np.finfo(np.float32).max], np.float32).repeat(packing.slots // 2)
    coefficients = packed(extreme, 1.0, packing, Randomness.seeded(cohort))
    assert int(coefficients.max()) <= most
    assert cohort * top <= (1 << packing.bits) - 2
    assert cohort * most < PLAIN_MODULUS
    total = coefficients[:, :-1] * np.uint64(cohort)
    for field in range(packing.fields):
        alone = coefficients[:, :-1] >> np.uint64(packing.bits * field) & np.uint64((1 << packing.bits) - 1)
        summed = total >> np.uint64(packing.bits * field) & np.uint64((1 << packing.bits) - 1)
        np.testing.assert_array_equal(summed, alone * np.uint64(cohort))


@pytest.mark.parametrize(("profile", "sites"), [("compact", 1_000), ("precise", 1_000), ("dense", MOST["dense"])])
def test_sums_of_a_thousand_sites_are_exact(profile: Profile, sites: int) -> None:
    size = 50
    packing = packing_of(profile, sites, 2.0)
    generator = np.random.default_rng(5)
    weights = [float(weight) for weight in generator.uniform(0.1, 1, sites)]
    vectors = generator.normal(size=(sites, size)).astype(np.float32)
    sent = [
        packed(vector, weight, packing, Randomness.seeded(number))
        for number, (vector, weight) in enumerate(zip(vectors, weights, strict=True))
    ]
    total = sum(sent, np.zeros_like(sent[0]))
    exact = [sum(int(fields[0, place]) for fields in sent) for place in range(size)]
    assert total[0, :size].tolist() == exact
    assert max(exact) < PLAIN_MODULUS
    mean = unpack([total], size, weights, packing).vector
    expected = np.clip(vectors * np.array(weights)[:, None], -2, 2).sum(axis=0) / sum(weights)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=packing.max_error(weights))


def test_the_last_coefficient_of_every_ciphertext_stays_free() -> None:
    packing = packing_of("compact")
    coefficients = packed(np.ones(packing.slots + 1), 1.0, packing)
    assert coefficients.shape == (2, RING_DEGREE)
    assert not coefficients[:, -1].any()


def test_values_fill_one_field_of_all_coefficients_before_the_next() -> None:
    packing = packing_of("compact", cohort=1)
    values = np.full(3 * 4095, -1.0)
    values[0], values[4095 + 7], values[-1] = 1.0, 1.0, 1.0
    row = packed(values, 1.0, packing)[0]
    top = packing.levels - 1
    assert {place: int(row[place]) for place in np.flatnonzero(row)} == {0: top, 7: top << 16, 4094: top << 32}


@pytest.mark.parametrize(
    ("profile", "cohort"),
    [
        ("compact", 0),
        ("compact", -1),
        ("compact", MOST["compact"] + 1),
        ("precise", 0),
        ("precise", MOST["precise"] + 1),
        ("dense", 0),
        ("dense", MOST["dense"] + 1),
    ],
)
def test_a_cohort_that_leaves_no_room_is_refused(profile: Profile, cohort: int) -> None:
    with pytest.raises(ConfigError) as caught:
        packing_of(profile, cohort)
    assert str(caught.value) == (
        f"fields of {BITS[profile]} bits have room for 1 to {MOST[profile]} sites, not {cohort}; use `precise`"
    )


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf, 1e31, 1e-31, 5e-324])
def test_a_bound_or_weight_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"must be between 1e-30 and 1e\+30"):
        packing_of("compact", update_bound=value)
    with pytest.raises(ConfigError, match=r"must be between 1e-30 and 1e\+30"):
        packing_of("compact", max_weight=value)


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.000_001, np.inf, np.nan])
def test_a_weight_beyond_the_manifests_range_is_refused(weight: float) -> None:
    with pytest.raises(MalformedError, match=r"is not in \(0, 1.0\], the range that the manifest fixes"):
        pack(private(np.zeros(3)), weight, packing_of("compact"), Randomness.fresh())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_at_both_steps(value: float) -> None:
    vector = np.array([0.0, value], np.float32)
    with pytest.raises(MalformedError, match="not finite; lower the learning rate or check the records"):
        Update(vector)
    with pytest.raises(MalformedError, match="not finite; nothing was encrypted"):
        pack(PrivateUpdate(vector, CHARGE), 1.0, packing_of("compact"), Randomness.fresh())


@pytest.mark.parametrize("value", [1e-45, -1e-45, 3.4e38, -3.4e38, -0.0])
def test_subnormal_and_huge_values_are_only_clipped(value: float) -> None:
    packing = packing_of("precise")
    coefficients = packed(np.array([value]), 1.0, packing, Randomness.seeded(3))
    mean = unpack([coefficients], 1, [1.0], packing).vector
    assert abs(mean[0] - np.clip(value, -1, 1)) <= packing.max_error([1.0])


SIZE, WEIGHTS = 20, [1.0, 0.5, 0.25]


def true_sum(packing: Packing) -> np.ndarray:
    total = np.zeros((1, RING_DEGREE), np.uint64)
    for weight in WEIGHTS:
        total += packed(np.linspace(-1, 1, SIZE), weight, packing)
    return total


@pytest.mark.parametrize("profile", PROFILES)
def test_a_field_that_the_contributors_cannot_have_reached_is_refused(profile: Profile) -> None:
    packing = packing_of(profile)
    total = true_sum(packing)
    total[0, SIZE - 1] = 3 * (packing.levels - 1)
    unpack([total], SIZE, WEIGHTS, packing)
    total[0, SIZE - 1] += 1
    with pytest.raises(MalformedError, match="values that these contributors cannot have sent; the sum was altered"):
        unpack([total], SIZE, WEIGHTS, packing)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(SIZE, id="just after the parameters"),
        pytest.param(RING_DEGREE - 2, id="the last slot"),
    ],
)
def test_nonzero_padding_in_a_sum_is_refused(place: int) -> None:
    packing = packing_of("compact")
    total = true_sum(packing)
    total[0, place] = 1
    with pytest.raises(MalformedError, match="the sum was altered"):
        unpack([total], SIZE, WEIGHTS, packing)


@pytest.mark.parametrize(
    ("lengths", "contributors", "message"),
    [
        pytest.param((2,), 3, "cannot have sent", id="too many ciphertexts"),
        pytest.param((1, 1), 3, "cannot have sent", id="a block too many"),
        pytest.param((0,), 3, "a sum of 0 values does not fit this run's 20", id="too few ciphertexts"),
        pytest.param((), 3, "a sum of 0 values does not fit this run's 20", id="no block"),
        pytest.param((1,), 0, "does not fit this run", id="no contributor"),
        pytest.param((1,), 4, "does not fit this run", id="more contributors than the cohort"),
    ],
)
def test_a_sum_of_another_form_is_refused(lengths: tuple[int, ...], contributors: int, message: str) -> None:
    blocks = [np.zeros((length, RING_DEGREE), np.uint64) for length in lengths]
    with pytest.raises(MalformedError, match=message):
        unpack(blocks, SIZE, [1.0] * contributors, packing_of("compact"))


@relaxed
@given(profile=profiles, size=st.integers(0, 10_000_000))
def test_a_ciphertext_is_counted_for_every_started_one(profile: Profile, size: int) -> None:
    packing = packing_of(profile)
    count = packing.ciphertexts(size)
    assert (count - 1) * packing.slots < size <= count * packing.slots
