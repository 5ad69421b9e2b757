"""Updates with codes, of random ciphertexts: nobody can tell them from real ones, and they take no time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from privacy.codec.ciphertext import (
    COEFF_MODULUS,
    SEED_BYTES,
    Accumulator,
    Ciphertexts,
    SummedCiphertexts,
    pack60,
    residues,
)
from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.expansion import add_expanded
from privacy.crypto.mac import MacKey
from privacy.errors import AuthenticityError
from privacy.run.plan import MOST_SEEDS, RoundPlan
from tests.privacy.consortium import CHARGE, SITES, make_plan, nonce_of, plan_with

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


def unauthenticated(number: int, count: int = 3, block: int = BLOCK, site: str = "north") -> EncryptedUpdate:
    """What nobody can tell from ciphertexts without the key."""
    rows, seeds = random_rows(number, count), np.random.default_rng(number).bytes(count * SEED_BYTES)
    chunks: Iterator[tuple[bytes, bytes]] = (
        (pack60(rows[start : start + block].reshape(-1)), seeds[start * SEED_BYTES : (start + block) * SEED_BYTES])
        for start in range(0, count, block)
    )
    return EncryptedUpdate(chunks, CHARGE, nonce_of(site))


def update(site: str, number: int, plan: RoundPlan = PLAN, key: MacKey = KEY, count: int = 3) -> Ciphertexts:
    return key.authenticate(unauthenticated(number, count, site=site), plan, site).ciphertexts


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
        assert [chunk.c0 for chunk in key.check(total, plan, {site: nonce_of(site) for site in sites})] == list(
            total.c0
        )
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
