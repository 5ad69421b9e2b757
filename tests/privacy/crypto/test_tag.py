"""The sum's tag: exact arithmetic, honest sums pass, whatever else a server could make of updates is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import add_residues, pack60
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE, Packing, unpack
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.masking import MaskedUpdate
from privacy.crypto.tag import KEY_BYTES, TagKey
from privacy.errors import AuthenticityError
from tests.privacy.consortium import (
    CHARGE,
    SITES,
    blocks_of,
    decrypted,
    few,
    joined,
    make_plan,
    nonce_of,
    packed,
    uncoded,
    unmasked,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from privacy.run.plan import RoundPlan

T = PLAIN_MODULUS
LAST = RING_DEGREE - 1
KEY = TagKey(b"k" * KEY_BYTES)
PLAN = make_plan("1" * 64, number=2)
NONCES = {site: nonce_of(site) for site in SITES}


def untagged(seed: int, count: int, below: int = T // 8) -> NDArray[np.uint64]:
    """Coefficients `(count, 4096)` of an update without its tag."""
    coefficients = np.random.default_rng(seed).integers(0, below, (count, RING_DEGREE), np.uint64)
    coefficients[:, LAST] = 0
    return coefficients


def tagged(
    coefficients: NDArray[np.uint64], site: str, plan: RoundPlan = PLAN, key: TagKey = KEY, nonce: str = ""
) -> NDArray[np.uint64]:
    nonce = nonce or nonce_of(site)
    return joined(key._tagged(blocks_of(coefficients.copy()), key._pads(plan, site, nonce)))


def honest(count: int = 3) -> dict[str, NDArray[np.uint64]]:
    """What each site of the plan sends."""
    return {site: tagged(untagged(number, count), site) for number, site in enumerate(SITES)}


def added(*updates: NDArray[np.uint64]) -> NDArray[np.uint64]:
    total = np.zeros_like(updates[0])
    for update in updates:
        total = (total + update) % np.uint64(T)
    return total


def checked(total: NDArray[np.uint64], plan: RoundPlan, sites: Iterable[str], key: TagKey = KEY) -> NDArray[np.uint64]:
    """Check a sum to its end; return what was passed on."""
    return joined(key.check(blocks_of(total), plan, {site: nonce_of(site) for site in sites}))


def refused(total: NDArray[np.uint64], plan: RoundPlan = PLAN, sites: tuple[str, ...] = SITES) -> bool:
    try:
        checked(total, plan, sites)
    except AuthenticityError:
        return True
    return False


def alpha_of(key: TagKey) -> list[int]:
    low, high = key._alpha
    return [int(a) + (int(b) << 24) for a, b in zip(low, high, strict=True)]


def pads_of(key: TagKey, count: int) -> list[int]:
    return [int(pad) for pad in key._pads(PLAN, "north", nonce_of("north")).residues(count, T)]


@pytest.mark.parametrize(
    "coefficients",
    [
        np.full((2, RING_DEGREE), T - 1, np.uint64),
        np.zeros((1, RING_DEGREE), np.uint64),
        np.tile(np.array([0, T - 1, 0xFFFF, 0xFFFF0000], np.uint64), (1, RING_DEGREE // 4)),
        untagged(4, 3, below=T),
    ],
    ids=["all t-1", "all zero", "edges of limbs", "random"],
)
def test_the_inner_product_is_that_of_exact_integers(coefficients: NDArray[np.uint64]) -> None:
    alpha = alpha_of(KEY)
    exact = [sum(a * int(m) for a, m in zip(alpha, row[:LAST], strict=True)) % T for row in coefficients]
    assert KEY._inner(coefficients).tolist() == exact


def test_the_inner_product_is_exact_also_for_the_largest_secret_coefficients() -> None:
    key = TagKey(b"")
    half = np.float64((1 << 24) - 1)
    key.__dict__["_alpha"] = np.full((2, LAST), half)  # above any that can be drawn: 2^48 - 1
    coefficients = np.full((1, RING_DEGREE), T - 1, np.uint64)
    assert key._inner(coefficients).tolist() == [LAST * ((1 << 48) - 1) * (T - 1) % T]


def test_secret_coefficients_and_pads_are_below_the_modulus_and_fill_its_range() -> None:
    for values in (alpha_of(KEY), pads_of(KEY, 4000)):
        assert len(set(values)) == len(values)
        assert max(values) < T
        assert abs(sum(values) / len(values) / T - 0.5) < 5 / (12 * len(values)) ** 0.5


@few
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 3),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True), min_size=1, max_size=6, unique=True),
)
def test_the_honest_sum_of_any_sites_passes(seed: int, count: int, names: list[str]) -> None:
    terms = [untagged(seed + number, count, T // len(names)) for number in range(len(names))]
    total = added(*(tagged(term, name) for term, name in zip(terms, names, strict=True)))
    for order in (names, reversed(names)):
        np.testing.assert_array_equal(checked(total, PLAN, order), total)
    np.testing.assert_array_equal(total[:, :LAST], np.sum(terms, axis=0)[:, :LAST])


def test_a_tag_changes_only_the_last_coefficient_and_keeps_the_charge() -> None:
    before = untagged(1, 2)
    packed = unmasked(before.copy())
    tagged_update = KEY.tag(packed, PLAN, "north")
    coefficients = joined(tagged_update.blocks)
    np.testing.assert_array_equal(coefficients[:, :LAST], before[:, :LAST])
    assert tagged_update.charge is packed.charge
    assert (coefficients[:, LAST] != before[:, LAST]).all()
    assert (coefficients[:, LAST] < T).all()


def test_tags_do_not_depend_on_how_ciphertexts_are_cut_into_blocks() -> None:
    whole = untagged(5, 5)
    pieces = (piece.copy() for piece in np.split(whole, [1, 3]))
    tagged_update = KEY.tag(MaskedUpdate(pieces, CHARGE), PLAN, "north")
    cut = joined(tagged_update.blocks)
    np.testing.assert_array_equal(cut, tagged(whole, "north", nonce=tagged_update.nonce))
    np.testing.assert_array_equal(joined(KEY.check(np.split(cut, [2, 4]), PLAN, {"north": tagged_update.nonce})), cut)


def test_a_block_is_passed_on_only_once_it_is_known_to_be_right() -> None:
    total = added(*honest(3).values())
    total[1, 7] ^= np.uint64(1)
    rest = KEY.check(np.split(total, 3), PLAN, NONCES)
    np.testing.assert_array_equal(next(rest), total[:1])
    with pytest.raises(AuthenticityError, match="round 2"):
        next(rest)


def test_a_tag_depends_on_key_plan_site_nonce_and_ciphertext() -> None:
    same = np.tile(untagged(1, 1), (2, 1))
    others = [
        tagged(same, "north"),
        tagged(same, "south"),
        tagged(same, "north", nonce="4" * 64),
        tagged(same, "north", key=TagKey(b"j" * KEY_BYTES)),
        *(
            tagged(same, "north", replace(PLAN, **change))
            for change in (
                {"run": "4" * 64},
                {"round": 3},
                {"attempt": 2},
                {"cohort": SITES[::-1]},
                {"keys": "4" * 64},
                {"base_model": "4" * 64},
            )
        ),
    ]
    tags = {int(tag) for code in others for tag in code[:, LAST]}
    assert len(tags) == 2 * len(others)


def test_secret_coefficients_and_pads_depend_on_the_key() -> None:
    other = TagKey(KEY._secret[:-1] + b"j")
    assert not set(alpha_of(KEY)) & set(alpha_of(other))
    assert not set(pads_of(KEY, 9)) & set(pads_of(other, 9))


def test_another_key_refuses_the_honest_sum() -> None:
    with pytest.raises(AuthenticityError, match="round 2"):
        checked(added(*honest().values()), PLAN, SITES, TagKey(b"j" * KEY_BYTES))


def test_a_constant_added_to_any_coefficient_is_refused() -> None:
    total = added(*honest().values())
    generator = np.random.default_rng(1)
    for place in {0, 1, LAST - 1, LAST, *generator.integers(0, RING_DEGREE, 46).tolist()}:
        for row in range(len(total)):
            for constant in (1, 1 << 47, T - 1, int(generator.integers(1, T))):
                changed = total.copy()
                changed[row, place] = (int(changed[row, place]) + constant) % T
                assert refused(changed), (row, place, constant)


def test_two_hundred_random_changes_are_all_refused() -> None:
    total = added(*honest().values())
    generator = np.random.default_rng(2)
    for _ in range(200):
        noise = np.zeros_like(total)
        cells = generator.integers(1, total.size)
        noise.reshape(-1)[generator.choice(total.size, cells, replace=False)] = generator.integers(
            1, T, cells, np.uint64
        )
        assert refused(added(total, noise))


def test_sums_of_updates_other_than_the_named_ones_are_refused() -> None:
    sent = honest()
    total = added(*sent.values())
    earlier = tagged(untagged(0, 3), "north", replace(PLAN, round=1))
    assert not refused(total)
    lies = {
        "omitted": added(sent["north"], sent["south"]),
        "doubled": added(total, sent["west"]),
        "one for another": added(sent["north"], sent["south"], sent["south"]),
        "replayed": added(earlier, sent["south"], sent["west"]),
        "one site's": sent["north"],
        "one site's, as often as there are sites": added(*[sent["north"]] * 3),
        "scaled by two": added(total, total),
        "nothing": np.zeros_like(total),
        "swapped": total[[1, 0, 2]],
        "repeated": total[[0, 0, 2]],
        "turned": np.roll(total, 1, axis=1),
        "negated": (np.uint64(T) - total) % np.uint64(T),
    }
    assert [name for name, lie in lies.items() if not refused(lie)] == []


def test_other_contributors_than_were_added_are_refused() -> None:
    total = added(*honest().values())
    lists: list[tuple[str, ...]] = [
        ("north", "south"), (*SITES, "east"), ("north", "south", "east"), ("north",), (),
    ]  # fmt: skip
    assert [sites for sites in lists if not refused(total, sites=sites)] == []


def test_one_sites_update_passes_only_as_that_sites_for_that_plan() -> None:
    sent = honest()
    assert not refused(sent["north"], sites=("north",))
    assert refused(sent["north"], sites=("south",))
    assert refused(sent["north"], sites=("north",), plan=replace(PLAN, attempt=2))


def test_a_sum_that_was_cut_after_a_whole_ciphertext_is_left_to_the_check_of_its_length() -> None:
    # The pads of the first ciphertexts do not depend on how many follow; `check_sum` holds the length against the size.
    assert not refused(added(*honest().values())[:2])


def test_tags_survive_encryption() -> None:
    decryption = DecryptionKey.generate()
    packing = Packing.of("compact", cohort=3, update_bound=1.0, max_weight=1.0)
    vectors = [np.random.default_rng(number).normal(0, 0.1, packing.slots + 5) for number in range(3)]
    tagged_updates = {
        site: KEY.tag(unmasked(packed(vector, 1.0, packing)), PLAN, site)
        for vector, site in zip(vectors, SITES, strict=True)
    }
    nonces = {site: tagged_update.nonce for site, tagged_update in tagged_updates.items()}
    encrypted = [uncoded(decryption.encrypt(tagged_update)) for tagged_update in tagged_updates.values()]
    assert {len(update.seeds) for update in encrypted} == {2 * 64}

    total = np.zeros((2, RING_DEGREE), np.uint64)
    for update in encrypted:
        add_residues(total, next(update.residues()))
    right = decrypted(decryption, [pack60(total.reshape(-1))], [update.seeds for update in encrypted], 2)
    mean = unpack(KEY.check([right], PLAN, nonces), packing.slots + 5, [1.0] * 3, packing)
    assert np.abs(mean.vector - np.mean(vectors, axis=0)).max() <= packing.max_error([1.0] * 3)
