"""Codes refuse whatever else a server could make of ciphertexts, however little it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from privacy.codec.ciphertext import (
    C0_BYTES,
    SEED_BYTES,
    SummedCiphertexts,
    pack60,
    residues,
)
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.mac import MacKey
from privacy.errors import MalformedError
from tests.privacy.coded import (
    KEY,
    LARGE,
    PLAN,
    PLANS,
    Q,
    added,
    honest,
    refused,
    shifted,
    update,
)
from tests.privacy.consortium import SITES, nonce_of, plan_with

if TYPE_CHECKING:
    from privacy.run.plan import RoundPlan


@PLANS
def test_a_change_of_any_residue_or_code_is_refused_however_small(plan: RoundPlan) -> None:
    total = added(plan, *honest(plan).values())
    generator = np.random.default_rng(1)
    last = 3 * RING_DEGREE - 1
    for part in ("c0", "codes", *(["c1"] if plan.expanded else [])):
        for place in (0, RING_DEGREE - 1, RING_DEGREE, last, *generator.integers(0, last, 8).tolist()):
            for by in (1, Q - 1, 1 << 59, int(generator.integers(1, Q))):
                assert refused(shifted(total, part, place, by), plan), (part, place, by)


def test_a_change_of_a_seed_is_refused_where_codes_are_of_c1() -> None:
    # In smaller cohorts headers sign the seeds, and `check_sum` holds the sum against them: see below.
    authenticated = update("north", 1, LARGE)
    for place in (0, SEED_BYTES, 3 * SEED_BYTES - 1):
        seeds = bytearray(authenticated.seeds)
        seeds[place] ^= 1
        assert refused(replace(authenticated.alone, seeds=(bytes(seeds),)), LARGE, ["north"])


@PLANS
def test_sums_of_updates_other_than_the_named_ones_are_refused(plan: RoundPlan) -> None:
    north, south, west = honest(plan).values()
    total = added(plan, north, south, west)
    words = {part: residues(getattr(total, part)[0]) for part in ("c0", "c1") if getattr(total, part)}
    codes = np.frombuffer(total.codes, "<u8")

    def moved(order: list[int]) -> SummedCiphertexts:
        parts: dict[str, Any] = {name: (pack60(rows[order].reshape(-1)),) for name, rows in words.items()}
        return replace(total, codes=codes[order].tobytes(), **parts)

    lies = {
        "omitted": added(plan, north, south),
        "doubled": added(plan, north, south, west, west),
        "one for another": added(plan, north, south, south),
        "of an earlier round": added(plan, update("north", 0, plan_with(plan, round=1)), south, west),
        "of another attempt": added(plan, update("north", 0, plan_with(plan, attempt=2)), south, west),
        "under another key": added(plan, update("north", 0, plan, MacKey(b"j" * 32)), south, west),
        "one site's": added(plan, north),
        "one site's, as often as there are sites": added(plan, north, north, north),
        "scaled by two": added(plan, *[north, south, west] * 2),
        "swapped": moved([1, 0, 2]),
        "repeated": moved([0, 0, 2]),
        "codes swapped": replace(total, codes=codes[[1, 0, 2]].tobytes()),
        "nothing": replace(total, c0=(bytes(3 * C0_BYTES),), codes=bytes(24)),
    }
    assert not refused(total, plan)
    assert [name for name, lie in lies.items() if not refused(lie, plan)] == []


@PLANS
def test_other_contributors_or_another_plan_or_key_are_refused(plan: RoundPlan) -> None:
    total = added(plan, *honest(plan).values())
    lists: list[tuple[str, ...]] = [
        ("north", "south"), (*SITES, "east"), ("north", "south", "east"), ("north",),
    ]  # fmt: skip
    assert [sites for sites in lists if not refused(total, plan, sites)] == []
    assert refused(total, plan_with(plan, attempt=2))
    assert refused(total, plan, key=MacKey(b"j" * 32))


@pytest.mark.parametrize("code", [Q, (1 << 64) - 1])
def test_a_code_that_is_not_a_residue_is_refused(code: int) -> None:
    total = added(PLAN, *honest(PLAN, count=1).values())
    assert refused(replace(total, codes=code.to_bytes(8, "little")), PLAN)
    more = int.from_bytes(total.codes, "little") + Q  # the same residue, written otherwise
    assert refused(replace(total, codes=more.to_bytes(8, "little")), PLAN)


@PLANS
def test_words_that_are_not_residues_are_malformed(plan: RoundPlan) -> None:
    total = added(plan, *honest(plan, count=1).values())
    bad = (pack60(np.full(RING_DEGREE, Q, np.uint64)),)
    for lie in (replace(total, c0=bad), *([replace(total, c1=bad)] if plan.expanded else [])):
        with pytest.raises(MalformedError, match="not below the modulus q"):
            list(KEY.check(lie, plan, {site: nonce_of(site) for site in SITES}))
