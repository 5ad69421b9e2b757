"""Masks cancel over the whole cohort and over nothing less; what colluders hold is uniform; a seed is for one plan."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto import masking
from privacy.crypto.masking import SEALED_BYTES, Masks, commitment, open_seed, seal_pairs, seal_seed, unmask_sum
from privacy.crypto.tag import TagKey
from privacy.errors import AuthenticityError
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan
from tests.privacy.consortium import few, shared_secrets

T = np.uint64(PLAIN_MODULUS)
LAST = RING_DEGREE - 1
SITES = ("east", "north", "south", "west")
SECRETS = {site: shared_secrets(site, SITES) for site in SITES}
SEEDS = {site: bytes([number]) * 32 for number, site in enumerate(SITES, start=11)}
PLAN = RoundPlan(
    run="1" * 64, round=2, attempt=1, cohort=SITES, roster_version=1, epoch=1, keys="2" * 64, minimum_cohort=3,
    deadline=2e9, base_model="3" * 64,
)  # fmt: skip

Block = NDArray[np.uint64]


def update(number: int, rows: int = 1) -> Block:
    """Coefficients `(rows, 4096)` as packed, but small, so that unmasked ones would be noticed."""
    return np.random.default_rng(number).integers(0, 1 << 20, (rows, RING_DEGREE), np.uint64)


def masked(site: str, block: Block, plan: RoundPlan = PLAN, seed: bytes | None = None) -> Block:
    masks = Masks(SECRETS[site], seed or SEEDS[site], plan, site)
    return next(masks.mask([block.copy()]))


def plus(*blocks: Block) -> Block:
    total = np.zeros_like(blocks[0])
    for block in blocks:
        total += block
    total %= T
    return total


def without_own(block: Block, *sites: str, plan: RoundPlan = PLAN) -> Block:
    """Take the masks off whose seeds these sites have revealed."""
    return next(unmask_sum([block.copy()], {site: SEEDS[site] for site in sites}, {}, plan))


def assert_uniform(values: Block) -> None:
    """Fail if residues modulo t are not evenly distributed, in their upper bits or their lower."""
    for part in (values // (T // np.uint64(256) + np.uint64(1)), values % np.uint64(256)):
        counts = np.bincount(part.reshape(-1).astype(np.int64), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
    assert abs(np.corrcoef(values[0, : LAST - 1], values[0, 1:LAST])[0, 1]) < 0.1


@few
@given(cohort=st.lists(st.sampled_from(SITES), min_size=2, unique=True), rows=st.integers(1, 3))
def test_masks_cancel_in_the_sum_over_the_whole_cohort(cohort: list[str], rows: int) -> None:
    plan = replace(PLAN, cohort=tuple(cohort))
    blocks = [update(number, rows) for number in range(len(cohort))]
    total = plus(*(masked(site, block, plan) for site, block in zip(cohort, blocks, strict=True)))
    np.testing.assert_array_equal(without_own(total, *cohort, plan=plan)[:, :LAST], plus(*blocks)[:, :LAST])


def test_block_by_block_the_masks_are_those_of_the_whole() -> None:
    whole = update(1, 5)
    masks = Masks(SECRETS["east"], SEEDS["east"], PLAN, "east")
    parts = np.concatenate(list(masks.mask([whole[:2].copy(), whole[2:3].copy(), whole[3:].copy()])))
    np.testing.assert_array_equal(parts, masked("east", whole))


def test_a_site_takes_its_own_masks_off_again() -> None:
    block = update(1, 2)
    masks = Masks(SECRETS["north"], SEEDS["north"], PLAN, "north")
    np.testing.assert_array_equal(next(masks.unmask([masked("north", block)])), block)


def test_the_place_of_the_tag_is_left_alone() -> None:
    block = update(1)
    np.testing.assert_array_equal(masked("north", block)[:, LAST], block[:, LAST])


def test_no_stream_is_used_twice() -> None:
    zero = np.zeros((1, RING_DEGREE), np.uint64)
    plans = [replace(PLAN, **change) for change in (
        {}, {"run": "4" * 64}, {"round": 3}, {"attempt": 2}, {"cohort": SITES[:3]}, {"keys": "5" * 64},
    )]  # fmt: skip
    seen = [masked(site, zero, plan).tobytes() for plan in plans for site in plan.cohort]
    assert len(set(seen)) == len(seen)
    rows = masked("north", np.zeros((40, RING_DEGREE), np.uint64))
    assert len({row.tobytes() for row in rows}) == 40


# --- The server and all sites but two -------------------------------------------------------------------------------


def known_to_colluders(site: str, plan: RoundPlan = PLAN) -> Block:
    """All masks that an honest site shares with the colluders, east and west: they know them as well as it does."""
    total = np.zeros((1, RING_DEGREE), np.uint64)
    for other in ("east", "west"):
        seed = Masks(SECRETS[other], SEEDS[other], plan, other).pairs[site]
        residues = Randomness(seed).residues(LAST, PLAIN_MODULUS)
        total = plus(total, np.append(residues if site < other else T - residues, np.uint64(0))[None])
    return total


@pytest.mark.parametrize("number", range(3))
def test_masked_updates_are_uniform_to_colluders_before_any_reveal(number: int) -> None:
    seeds = {site: Randomness.seeded(number, site).bytes(32) for site in SITES}
    for site in ("north", "south"):
        seen = plus(masked(site, update(number), seed=seeds[site]), T - known_to_colluders(site))
        assert_uniform(seen[:, :LAST])


@pytest.mark.parametrize("number", range(3))
def test_after_the_reveals_colluders_learn_only_the_sum_of_the_other_two(
    number: int,
) -> None:
    own = {"north": update(number), "south": update(number + 10)}
    seen = {
        site: plus(without_own(masked(site, block), site), T - known_to_colluders(site)) for site, block in own.items()
    }
    total = plus(*seen.values())
    np.testing.assert_array_equal(total[:, :LAST], (own["north"] + own["south"])[:, :LAST])
    for site, block in seen.items():
        assert_uniform(block[:, :LAST])
        # It says as little about the update as about any other: it is not closer to its own than to the other's.
        for guess in own.values():
            assert_uniform(plus(block, np.subtract(T, guess))[:, :LAST])
        assert not np.array_equal(block[:, :LAST], own[site][:, :LAST])


def test_two_attempts_of_one_update_reveal_no_more_than_one() -> None:
    again = replace(PLAN, attempt=2, cohort=("east", "north", "south"))
    block = update(1)
    first = without_own(masked("north", block), "north")  # revealed
    second = masked("north", block, again, seed=b"x" * 32)  # not revealed
    assert_uniform(plus(first, T - second)[:, :LAST])
    assert_uniform(second[:, :LAST])


def test_a_withheld_seed_keeps_the_sum_closed() -> None:
    blocks = {site: update(number) for number, site in enumerate(SITES)}
    total = plus(*(masked(site, block) for site, block in blocks.items()))
    assert_uniform(without_own(total, "east", "south", "west")[:, :LAST])
    lacking = plus(*(masked(site, block) for site, block in blocks.items() if site != "north"))
    assert_uniform(without_own(lacking, "east", "south", "west")[:, :LAST])


# --- Keys and seeds -------------------------------------------------------------------------------------------------


def test_a_revealed_seed_opens_for_its_own_site_and_plan_only() -> None:
    seed, secret = SEEDS["north"], b"k" * 32
    sealed = seal_seed(seed, secret, PLAN, "north")
    assert len(sealed) == SEALED_BYTES
    assert open_seed(sealed, secret, PLAN, "north", commitment(seed)) == seed
    for wrong in (
        (sealed, b"j" * 32, PLAN, "north", commitment(seed)),
        (sealed, secret, replace(PLAN, attempt=2), "north", commitment(seed)),
        (sealed, secret, PLAN, "south", commitment(seed)),
        (sealed, secret, PLAN, "north", commitment(SEEDS["south"])),
        (sealed[:-1], secret, PLAN, "north", commitment(seed)),
        (b"", secret, PLAN, "north", commitment(b"")),
        (seal_seed(b"y" * 32, secret, PLAN, "north"), secret, PLAN, "north", commitment(seed)),
    ):
        with pytest.raises(AuthenticityError, match="does not match its commitment"):
            open_seed(*wrong)


# --- A simulation, executed -----------------------------------------------------------------------------------------

COHORT = (*SITES, "young")  # "young" never sent anything


class Shifted(Randomness):
    """The stream of a seed, plus a constant for each residue: as likely as the stream itself."""

    def __init__(self, key: bytes, shift: Block) -> None:
        super().__init__(key)
        self._shift, self._place = shift.reshape(-1), 0

    def residues(self, count: int, modulus: int) -> Block:
        drawn = super().residues(count, modulus) + self._shift[self._place : self._place + count]
        self._place += count
        drawn %= np.uint64(modulus)
        return drawn


def view(updates: dict[str, Block], plan: RoundPlan) -> list[bytes]:
    """What the server and the colluders, east and west, have of the others after a round that "young" dropped out of.

    Messages with tags, commitments, seeds of masks shared with the absent one, own seeds; and, as all keys are theirs,
    the masks that the two share with colluders and the sum, by the colluders' own means.
    """
    seen, key = list[bytes](), TagKey(b"k" * 32)
    for site, block in updates.items():
        masks = Masks(shared_secrets(site, COHORT), SEEDS[site], plan, site)
        tagged = list(key._tagged(masks.mask([block.copy()]), key._pads(plan, site, "0" * 64)))
        seen += [part.tobytes() for part in tagged]
        seen += [masks.pairs[other] for other in ("east", "west", "young")]
        seen += [masks.commitments, SEEDS[site], commitment(SEEDS[site]).encode()]
        seen += [seal_pairs(masks, ["young"], b"s" * 32, plan, site)]
    return seen


def test_colluders_cannot_distinguish_updates_with_equal_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(PLAN, cohort=COHORT)
    one = {"north": update(1), "south": update(2)}
    moved = update(3)
    other = {"north": plus(one["north"], moved), "south": plus(one["south"], T - moved)}
    for block in other.values():
        block[:, LAST] = 0
    for block in one.values():
        block[:, LAST] = 0
    secret = Masks(shared_secrets("north", COHORT), SEEDS["north"], plan, "north").pairs["south"]
    first = view(one, plan)
    assert view(other, plan) != first  # under the same masks they can be told apart
    # Under masks between the two that are as likely, nothing can: all bytes are the same.
    shift = (T - moved)[:, :LAST]
    monkeypatch.setattr(masking, "Randomness", lambda key: Shifted(key, shift) if key == secret else Randomness(key))
    assert view(other, plan) == first
    summed = plus(*one.values())
    np.testing.assert_array_equal(plus(*other.values())[:, :LAST], summed[:, :LAST])
