"""Codes on ciphertexts: exact arithmetic; honest sums pass; whatever else a server could make is not decrypted."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import encryption
from privacy.ciphertext import (
    C0_BYTES,
    COEFF_MODULUS,
    SEED_BYTES,
    Accumulator,
    Ciphertexts,
    SummedCiphertexts,
    pack60,
    residues,
)
from privacy.encryption import EncryptedUpdate
from privacy.errors import AuthenticityError, CloisterError, MalformedError
from privacy.expansion import add_expanded, expand
from privacy.mac import MacKey, _inner
from privacy.packing import BLOCK, RING_DEGREE
from privacy.plan import MOST_SEEDS, RoundPlan
from tests.privacy.consortium import CHARGE, SITES, few, make_plan, plan_with
from tests.privacy.honest import honest_sum, open_sum

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

Q = COEFF_MODULUS
KEY = MacKey(b"k" * 32)
PLAN = make_plan("1" * 64, number=2)
LARGE = plan_with(PLAN, cohort=(*SITES, *(f"site-{number}" for number in range(MOST_SEEDS - 2))))
PLANS = pytest.mark.parametrize("plan", [PLAN, LARGE], ids=["with seeds", "with c1"])


def random_rows(seed: int, count: int) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, Q, (count, RING_DEGREE), np.uint64)


def unauthenticated(number: int, count: int = 3, block: int = BLOCK) -> EncryptedUpdate:
    """What nobody can tell from ciphertexts without the key."""
    rows, seeds = random_rows(number, count), np.random.default_rng(number).bytes(count * SEED_BYTES)
    chunks: Iterator[tuple[bytes, bytes]] = (
        (pack60(rows[start : start + block].reshape(-1)), seeds[start * SEED_BYTES : (start + block) * SEED_BYTES])
        for start in range(0, count, block)
    )
    return EncryptedUpdate(chunks, CHARGE)


def update(site: str, number: int, plan: RoundPlan = PLAN, key: MacKey = KEY, count: int = 3) -> Ciphertexts:
    return key.authenticate(unauthenticated(number, count), plan, site).ciphertexts


def honest(plan: RoundPlan, count: int = 3) -> dict[str, Ciphertexts]:
    return {site: update(site, number, plan, count=count) for number, site in enumerate(SITES)}


def added(plan: RoundPlan, *terms: Ciphertexts) -> SummedCiphertexts:
    """Do what the server does: of c0, codes, and in a large cohort c1."""
    c0, c1 = Accumulator(terms[0].count), Accumulator(terms[0].count)
    for term in terms:
        c0.add(term)
        if plan.expanded:
            add_expanded(c1.total, term.seeds)
    seeds = () if plan.expanded else tuple(term.seeds for term in terms)
    return SummedCiphertexts(c0.chunks(), seeds, c1.chunks() if plan.expanded else (), c0.code_bytes)


def refused(total: SummedCiphertexts, plan: RoundPlan, sites: Iterable[str] = SITES, key: MacKey = KEY) -> bool:
    try:
        assert [chunk.c0 for chunk in key.check(total, plan, sites)] == list(total.c0)
    except AuthenticityError as error:
        assert "nothing was decrypted" in str(error)  # noqa: PT017 - not every call is refused
        return True
    return False


def shifted(total: SummedCiphertexts, part: str, place: int, by: int) -> SummedCiphertexts:
    """Add a number to one residue of c0 or c1, or to one code."""
    if part == "codes":
        codes = np.frombuffer(total.codes, "<u8").copy()
        codes[place % codes.size] = (int(codes[place % codes.size]) + by) % Q
        return replace(total, codes=codes.tobytes())
    words = residues(getattr(total, part)[0]).copy()
    cells = words.reshape(-1)
    cells[place] = (int(cells[place]) + by) % Q
    changes: dict[str, Any] = {part: (pack60(cells),)}
    return replace(total, **changes)


# --- Arithmetic ----------------------------------------------------------------------------------------------------


def rho_of(parts: NDArray[np.float64]) -> list[int]:
    return [sum(int(part) << 20 * place for place, part in enumerate(column)) for column in parts.T]


LIMBS = np.array([0, Q - 1, 0xFFFF, 0xFFFF << 16, 0xFFFF << 32, 0x0FFE << 48, 1, 1 << 59], np.uint64)
LARGEST = np.full((3, RING_DEGREE), (1 << 20) - 1, np.float64)  # ρ above any that can be drawn: 2^60 - 1


@pytest.mark.parametrize("parts", [KEY._rho[0], KEY._rho[1], LARGEST], ids=["ρ", "ρ'", "the largest ρ"])
@pytest.mark.parametrize(
    "rows",
    [
        np.full((2, RING_DEGREE), Q - 1, np.uint64),
        np.zeros((1, RING_DEGREE), np.uint64),
        np.tile(LIMBS, (1, RING_DEGREE // len(LIMBS))),
        random_rows(1, 3),
    ],
    ids=["all q-1", "all zero", "edges of limbs", "random"],
)
def test_the_inner_product_is_that_of_exact_integers(rows: NDArray[np.uint64], parts: NDArray[np.float64]) -> None:
    rho = rho_of(parts)
    exact = [sum(r * c for r, c in zip(rho, row.tolist(), strict=True)) for row in rows]
    assert [found % Q for found in _inner(rows, parts)] == [each % Q for each in exact]


def test_secret_coefficients_and_pads_lie_below_the_modulus_and_fill_its_range() -> None:
    pads = KEY._pads(PLAN, "north").residues(4_000, Q).tolist()
    for values in (rho_of(KEY._rho[0]), rho_of(KEY._rho[1]), pads):
        assert len(set(values)) == len(values)
        assert max(values) < Q
        assert abs(sum(values) / len(values) / Q - 0.5) < 5 / (12 * len(values)) ** 0.5
    assert not set(rho_of(KEY._rho[0])) & set(rho_of(KEY._rho[1]))


@PLANS
def test_a_code_is_the_inner_product_and_a_pad(plan: RoundPlan) -> None:
    made = update("north", 1, plan)
    exact = []
    for row, pad in zip(random_rows(1, 3), KEY._pads(plan, "north").residues(3, Q).tolist(), strict=True):
        seed = made.seeds[len(exact) * SEED_BYTES : (len(exact) + 1) * SEED_BYTES]
        terms = [(KEY._rho[0], row), (KEY._rho[1], expand(seed))][: 1 + plan.expanded]
        inner = sum(r * c for rho, words in terms for r, c in zip(rho_of(rho), words.tolist(), strict=True))
        exact.append((inner + pad) % Q)
    assert np.frombuffer(made.codes, "<u8").tolist() == exact


def test_authentication_changes_nothing_else_and_keeps_the_charge() -> None:
    made = KEY.authenticate(unauthenticated(1, BLOCK + 1), PLAN, "north")
    assert made.charge is CHARGE
    assert [made.ciphertexts.alone.c0[0], made.ciphertexts.alone.c0[1]] == [
        c0 for c0, _ in unauthenticated(1, BLOCK + 1).chunks
    ]
    assert made.ciphertexts.seeds == b"".join(seeds for _, seeds in unauthenticated(1, BLOCK + 1).chunks)


@PLANS
def test_codes_do_not_depend_on_how_ciphertexts_are_cut_into_chunks(plan: RoundPlan) -> None:
    whole = update("north", 1, plan, count=5)
    pieces = KEY.authenticate(unauthenticated(1, 5, block=2), plan, "north").ciphertexts
    assert pieces.codes == whole.codes
    cut = SummedCiphertexts(whole.alone.c0, (whole.seeds,), (), pieces.codes)
    assert not refused(cut, plan, ["north"])


def test_a_code_depends_on_key_plan_site_and_place() -> None:
    chunks = [(c0 * 2, seeds * 2) for c0, seeds in unauthenticated(1, 1).chunks]  # one ciphertext, twice

    def codes(plan: RoundPlan = PLAN, site: str = "north", key: MacKey = KEY) -> list[int]:
        found = key.authenticate(EncryptedUpdate(iter(chunks), CHARGE), plan, site).ciphertexts.codes
        return [int(code) for code in np.frombuffer(found, "<u8")]

    changes: list[dict[str, object]] = [
        {"run": "4" * 64}, {"round": 3}, {"attempt": 2}, {"cohort": SITES[::-1]}, {"keys": "4" * 64},
        {"base_model": "4" * 64}, {"epoch": 3},
    ]  # fmt: skip
    found = [codes(), codes(site="south"), codes(key=MacKey(b"j" * 32)), codes(LARGE)]
    found += [codes(plan_with(PLAN, **change)) for change in changes]
    assert len({code for each in found for code in each}) == 2 * len(found)


# --- Honest sums ---------------------------------------------------------------------------------------------------


@few
@given(
    seed=st.integers(0, 1 << 32),
    count=st.integers(1, 3),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True), min_size=1, max_size=6, unique=True),
    large=st.booleans(),
)
def test_the_honest_sum_of_any_sites_passes(seed: int, count: int, names: list[str], *, large: bool) -> None:
    plan = LARGE if large else PLAN
    total = added(plan, *(update(name, seed + number, plan, count=count) for number, name in enumerate(names)))
    for order in (names, reversed(names)):
        assert not refused(total, plan, order)


@PLANS
def test_what_a_site_made_itself_passes_alone_with_its_seeds(plan: RoundPlan) -> None:
    made = update("north", 1, plan, count=BLOCK + 1)
    assert not refused(made.alone, plan, ["north"])
    assert refused(made.alone, plan, ["south"])


def test_a_chunk_is_passed_on_only_once_it_is_known_to_be_right() -> None:
    total = added(PLAN, *honest(PLAN, count=2 * BLOCK).values())
    codes = np.frombuffer(total.codes, "<u8").copy()
    codes[BLOCK] ^= np.uint64(1)
    rest = KEY.check(replace(total, codes=codes.tobytes()), PLAN, SITES)
    assert next(rest) == next(total.chunks())
    with pytest.raises(AuthenticityError, match="round 2"):
        next(rest)
    with pytest.raises(StopIteration):
        next(rest)


# --- What a server could make --------------------------------------------------------------------------------------


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
    made = update("north", 1, LARGE)
    for place in (0, SEED_BYTES, 3 * SEED_BYTES - 1):
        seeds = bytearray(made.seeds)
        seeds[place] ^= 1
        assert refused(replace(made.alone, seeds=(bytes(seeds),)), LARGE, ["north"])


@PLANS
def test_sums_of_other_updates_than_are_said_are_refused(plan: RoundPlan) -> None:
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
        ("north", "south"), (*SITES, "east"), ("north", "south", "east"), (*SITES, "north"), ("north",) * 3,
    ]  # fmt: skip
    assert [sites for sites in lists if not refused(total, plan, sites)] == []
    assert refused(total, plan_with(plan, attempt=2))
    assert refused(total, plan, key=MacKey(b"j" * 32))


@pytest.mark.parametrize("code", [Q, (1 << 64) - 1])
def test_a_code_that_is_no_residue_is_refused(code: int) -> None:
    total = added(PLAN, *honest(PLAN, count=1).values())
    assert refused(replace(total, codes=code.to_bytes(8, "little")), PLAN)
    more = int.from_bytes(total.codes, "little") + Q  # the same residue, written otherwise
    assert refused(replace(total, codes=more.to_bytes(8, "little")), PLAN)


@PLANS
def test_words_that_are_no_residues_are_malformed(plan: RoundPlan) -> None:
    total = added(plan, *honest(plan, count=1).values())
    bad = (pack60(np.full(RING_DEGREE, Q, np.uint64)),)
    for lie in (replace(total, c0=bad), *([replace(total, c1=bad)] if plan.expanded else [])):
        with pytest.raises(MalformedError, match="not below the modulus q"):
            list(KEY.check(lie, plan, SITES))


def _decrypt(key: bytes, chunk: object) -> None:
    del key, chunk
    pytest.fail("this was decrypted")


@pytest.mark.parametrize("part", ["c0", "codes", "seeds"])
def test_nothing_is_decrypted_of_a_sum_with_any_flipped_bit(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, generator = honest_sum(), np.random.default_rng(3)
    assert open_sum(total)
    monkeypatch.setattr(encryption, "_decrypt", _decrypt)
    with pytest.raises(pytest.fail.Exception, match="this was decrypted"):
        open_sum(total)
    first, *others = total.contributions
    data = {"c0": total.c0[0], "codes": total.codes, "seeds": first.seeds}[part]
    for bit in [0, 8 * len(data) - 1, *generator.integers(0, 8 * len(data), 20).tolist()]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        made = bytes(flipped)
        lie = {
            "c0": lambda made=made: replace(total, c0=(made,)),
            "codes": lambda made=made: replace(total, codes=made),
            "seeds": lambda made=made: replace(total, contributions=(replace(first, seeds=made), *others)),
        }[part]()
        with pytest.raises(CloisterError):
            open_sum(lie)
