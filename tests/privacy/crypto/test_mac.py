"""Codes on ciphertexts: exact arithmetic, for one site, plan and place; honest sums pass, chunk by chunk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import (
    SEED_BYTES,
    SummedCiphertexts,
)
from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.expansion import expand
from privacy.crypto.mac import MacKey, _inner
from privacy.errors import AuthenticityError
from tests.privacy.coded import (
    KEY,
    LARGE,
    PLAN,
    PLANS,
    Q,
    added,
    honest,
    random_rows,
    refused,
    unauthenticated,
    update,
)
from tests.privacy.consortium import CHARGE, SITES, few, nonce_of, plan_with

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.run.plan import RoundPlan

NONCES = {site: nonce_of(site) for site in SITES}

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
    assert [product % Q for product in _inner(rows, parts)] == [value % Q for value in exact]


def test_secret_coefficients_and_pads_are_below_the_modulus_and_fill_its_range() -> None:
    pads = KEY._pads(PLAN, "north", nonce_of("north")).residues(4_000, Q).tolist()
    for values in (rho_of(KEY._rho[0]), rho_of(KEY._rho[1]), pads):
        assert len(set(values)) == len(values)
        assert max(values) < Q
        assert abs(sum(values) / len(values) / Q - 0.5) < 5 / (12 * len(values)) ** 0.5
    assert not set(rho_of(KEY._rho[0])) & set(rho_of(KEY._rho[1]))


@PLANS
def test_a_code_is_the_inner_product_and_a_pad(plan: RoundPlan) -> None:
    authenticated = update("north", 1, plan)
    exact: list[int] = []
    for row, pad in zip(
        random_rows(1, 3), KEY._pads(plan, "north", nonce_of("north")).residues(3, Q).tolist(), strict=True
    ):
        seed = authenticated.seeds[len(exact) * SEED_BYTES : (len(exact) + 1) * SEED_BYTES]
        terms = [(KEY._rho[0], row), (KEY._rho[1], expand(seed))][: 1 + plan.expanded]
        inner = sum(r * c for rho, words in terms for r, c in zip(rho_of(rho), words.tolist(), strict=True))
        exact.append((inner + pad) % Q)
    assert np.frombuffer(authenticated.codes, "<u8").tolist() == exact


def test_authentication_changes_nothing_else_and_keeps_the_charge() -> None:
    authenticated = KEY.authenticate(unauthenticated(1, BLOCK + 1), PLAN, "north")
    assert authenticated.charge is CHARGE
    assert [authenticated.ciphertexts.alone.c0[0], authenticated.ciphertexts.alone.c0[1]] == [
        c0 for c0, _ in unauthenticated(1, BLOCK + 1).chunks
    ]
    assert authenticated.ciphertexts.seeds == b"".join(seeds for _, seeds in unauthenticated(1, BLOCK + 1).chunks)


@PLANS
def test_codes_do_not_depend_on_how_ciphertexts_are_cut_into_chunks(plan: RoundPlan) -> None:
    whole = update("north", 1, plan, count=5)
    pieces = KEY.authenticate(unauthenticated(1, 5, block=2), plan, "north").ciphertexts
    assert pieces.codes == whole.codes
    cut = SummedCiphertexts(whole.alone.c0, (whole.seeds,), (), pieces.codes)
    assert not refused(cut, plan, ["north"])


def test_a_code_depends_on_key_plan_site_nonce_and_place() -> None:
    chunks = [(c0 * 2, seeds * 2) for c0, seeds in unauthenticated(1, 1).chunks]  # one ciphertext, twice

    def codes(plan: RoundPlan = PLAN, site: str = "north", key: MacKey = KEY, nonce: str = "4" * 64) -> list[int]:
        data = key.authenticate(EncryptedUpdate(iter(chunks), CHARGE, nonce), plan, site).ciphertexts.codes
        return [int(code) for code in np.frombuffer(data, "<u8")]

    changes: list[dict[str, object]] = [
        {"run": "4" * 64}, {"round": 3}, {"attempt": 2}, {"cohort": SITES[::-1]}, {"keys": "4" * 64},
        {"base_model": "4" * 64}, {"epoch": 3},
    ]  # fmt: skip
    variants = [codes(), codes(nonce="5" * 64), codes(site="south"), codes(key=MacKey(b"j" * 32)), codes(LARGE)]
    variants += [codes(plan_with(PLAN, **change)) for change in changes]
    assert len({code for codes_of in variants for code in codes_of}) == 2 * len(variants)


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
def test_a_sites_own_update_passes_alone_with_its_seeds(plan: RoundPlan) -> None:
    authenticated = update("north", 1, plan, count=BLOCK + 1)
    assert not refused(authenticated.alone, plan, ["north"])
    assert refused(authenticated.alone, plan, ["south"])


def test_a_chunk_is_passed_on_only_once_it_is_known_to_be_right() -> None:
    total = added(PLAN, *honest(PLAN, count=2 * BLOCK).values())
    codes = np.frombuffer(total.codes, "<u8").copy()
    codes[BLOCK] ^= np.uint64(1)
    rest = KEY.check(replace(total, codes=codes.tobytes()), PLAN, NONCES)
    assert next(rest) == next(total.chunks())
    with pytest.raises(AuthenticityError, match="round 2"):
        next(rest)
    with pytest.raises(StopIteration):
        next(rest)
