"""Sites prove how long their updates are, others check; long ones, wrong ones and those of another sum are found."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.codec.packing import Packing, half_levels, pack
from privacy.crypto.norm_proof import commit, prove
from privacy.crypto.norm_signature import subject_of
from privacy.crypto.norms import (
    _blinding,
    add_up,
    context_of,
    longest,
    projection,
    prove_norm,
    read_proofs,
    state,
    watched,
)
from privacy.crypto.pedersen import IDENTITY, ORDER, combine
from privacy.errors import ConfigError, ProtocolError
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import private

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from privacy.crypto.norm_proof import Statement

SITES: tuple[str, ...] = ("north", "south", "west")
PLAN, SET, SUM = (sha256(name).hexdigest() for name in (b"plan", b"set", b"sum"))
NONCES = {site: sha256(site.encode()).digest() for site in SITES}
SUBJECT = subject_of(PLAN, SET, SUM)
CONTEXT = context_of(SUBJECT, NONCES)
SIZE, K = 500, 32
LENGTH = 3000


def _numbers(values: NDArray[np.float64]) -> list[int]:
    into = projection(CONTEXT, K)
    into.add(values)
    return into.numbers


def _secrets(site: str, sites: tuple[str, ...] = SITES) -> dict[str, bytes]:
    return {other: sha256(" ".join(sorted((site, other))).encode()).digest() for other in sites if other != site}


@dataclass
class Sites:
    """Three sites, the updates that they send, and what each proves."""

    updates: dict[str, NDArray[np.float64]]
    statements: dict[str, Statement]

    @property
    def total(self) -> NDArray[np.float64]:
        north, south, west = self.updates.values()
        return north + south + west

    def proofs(self) -> dict[str, bytes]:
        return {
            site: prove_norm(self.statements[site], _numbers(v), _secrets(site)) for site, v in self.updates.items()
        }

    def refused(self, proofs: Mapping[str, bytes]) -> set[str]:
        return set(SITES) - read_proofs(self.statements.values(), proofs).keys()

    def add_up(self, proofs: Mapping[str, bytes], total: NDArray[np.float64]) -> bool:
        read = read_proofs(self.statements.values(), proofs)
        return add_up(read.values(), _numbers(total))


@pytest.fixture(scope="module")
def sites() -> Sites:
    random = np.random.default_rng(1)
    updates = {site: np.floor(random.standard_normal(SIZE) * 100) for site in SITES}
    return Sites(updates, {site: state(CONTEXT, site, LENGTH, K) for site in SITES})


@pytest.fixture(scope="module")
def proofs(sites: Sites) -> dict[str, bytes]:
    return sites.proofs()


def test_honest_sites_prove_that_their_updates_are_short_and_are_those_of_the_sum(
    sites: Sites, proofs: dict[str, bytes]
) -> None:
    assert not sites.refused(proofs)
    assert sites.add_up(proofs, sites.total)


def test_proofs_do_not_hold_for_another_sum(sites: Sites, proofs: dict[str, bytes]) -> None:
    off = sites.total.copy()
    off[17] += 2
    assert not sites.add_up(proofs, off)
    assert not add_up([], _numbers(sites.total))


def test_a_long_update_has_no_valid_proof(sites: Sites) -> None:
    with pytest.raises(ProtocolError, match="the norm of west's update exceeds"):
        prove_norm(sites.statements["west"], _numbers(5 * sites.updates["west"]), _secrets("west"))


def test_a_proof_of_a_short_update_with_a_long_update_spoils_the_sum(sites: Sites, proofs: dict[str, bytes]) -> None:
    assert not sites.refused(proofs)
    assert not sites.add_up(proofs, sites.total + 4 * sites.updates["west"])


def test_two_liars_may_split_their_updates_but_not_shorten_them(sites: Sites) -> None:
    # south and west know each other's numbers: what one leaves out of its own, the other adds.
    y = {site: np.array(_numbers(v)) for site, v in sites.updates.items()}
    moved = y["south"] // 2
    shared = {"north": y["north"], "south": y["south"] - moved, "west": y["west"] + moved}
    proofs = {
        site: prove(sites.statements[site], numbers.tolist(), _blinding(_secrets(site), CONTEXT, site)).to_bytes()
        for site, numbers in shared.items()
    }
    assert not sites.refused(proofs)
    assert sites.add_up(proofs, sites.total)
    # An update of twice what both may send together leaves one of them over its limit, however it is shared out.
    long = (2 * np.sqrt(sites.statements["west"].limit) * y["west"] / np.linalg.norm(y["west"])).astype(int) * 2
    for part in (0.0, 0.3, 0.5, 1.0):
        half = (part * long).astype(int)
        assert max(np.sum(half**2), np.sum((long - half) ** 2)) > sites.statements["west"].limit


@pytest.mark.parametrize("bad", ["none", "empty", "cut", "of another site", "of another round", "altered"])
def test_a_bad_proof_is_blamed_on_its_owner(sites: Sites, proofs: dict[str, bytes], bad: str) -> None:
    changed = dict(proofs)
    later = state(context_of(subject_of(sha256(b"next plan").hexdigest(), SET, SUM), NONCES), "south", LENGTH, K)
    match bad:
        case "none":
            del changed["south"]
        case "empty":
            changed["south"] = b""
        case "cut":
            changed["south"] = proofs["south"][:-1]
        case "of another site":
            changed["south"] = proofs["west"]
        case "of another round":
            changed["south"] = prove_norm(later, _numbers(sites.updates["south"]), _secrets("south"))
        case _:
            changed["south"] = proofs["south"][:-1] + bytes([proofs["south"][-1] ^ 1])
    assert sites.refused(changed) == {"south"}
    assert not sites.add_up(changed, sites.total)


@given(st.integers(2, 6))
def test_blindings_add_up_to_zero_over_all_contributors_and_to_nothing_over_fewer(count: int) -> None:
    names = tuple(f"site-{number}" for number in range(count))
    blindings = [_blinding(_secrets(name, names), CONTEXT, name) for name in names]
    assert sum(blindings) % ORDER == 0
    assert all(sum(blindings[:some]) % ORDER for some in range(1, count))


def test_blindings_are_of_one_context_and_pair() -> None:
    one = _blinding(_secrets("north"), CONTEXT, "north")
    assert one == _blinding(_secrets("north"), CONTEXT, "north")
    assert one != _blinding(_secrets("north"), sha256(CONTEXT).digest(), "north")


def test_only_the_sum_of_two_honest_sites_is_visible(sites: Sites, proofs: dict[str, bytes]) -> None:
    # The simulator: from what west knows and the honest sum, it makes one commitment up, and has the other.
    read = read_proofs(sites.statements.values(), proofs)
    honest = sites.updates["north"] + sites.updates["south"]
    known = [_blinding({"west": _secrets(site)["west"]}, CONTEXT, site) for site in ("north", "south")]
    together = commit(_numbers(honest), sum(known))
    assert combine((1, read[site].commitment) for site in ("north", "south")) == together
    # What it cannot know is one number, evenly drawn: the two add it and take it away.
    hidden = [
        _blinding(_secrets(site), CONTEXT, site) - own for site, own in zip(("north", "south"), known, strict=True)
    ]
    assert sum(hidden) % ORDER == 0 != hidden[0] % ORDER


def test_a_context_is_of_plan_set_sum_and_every_nonce() -> None:
    others = [{**NONCES, site: sha256(b"another").digest()} for site in SITES]
    contexts = {
        CONTEXT,
        *(context_of(SUBJECT, nonces) for nonces in others),
        *(
            context_of(subject_of(*digests), NONCES)
            for digests in ((SET, PLAN, SUM), (PLAN, SUM, SET), (SUM, SET, PLAN))
        ),
    }
    assert len(contexts) == 7
    assert context_of(SUBJECT, dict(reversed(NONCES.items()))) == CONTEXT


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["compact", "precise", "dense"]),
    st.floats(0.01, 30),
    st.sampled_from([0.25, 0.7, 1.0]),
    st.integers(1, 300),
)
def test_an_update_of_the_length_that_is_allowed_can_be_sent(
    profile: str, norm: float, weight: float, size: int
) -> None:
    packing = Packing.of(profile, cohort=5, update_bound=1.0, max_weight=1.0)  # type: ignore[arg-type]
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    vector *= np.float32(norm / np.linalg.norm(vector.astype(np.float64)))
    packed = pack(private(vector), weight, packing, Randomness.seeded(1, profile))
    sent = np.concatenate([half_levels(block, 1, packing) for block in packed.blocks])[:size]
    assert np.linalg.norm(sent) <= longest(packing, size, weight, norm * (1 + 1e-6))


def test_the_length_that_is_allowed_is_that_of_the_run_in_half_levels() -> None:
    packing = Packing.of("compact", cohort=3, update_bound=0.5, max_weight=1.0)
    assert packing.levels == 21845
    assert longest(packing, 99, 0.5, 2.0) == 2 * 21844 + 2 * 10


def test_an_update_cannot_be_longer_than_its_levels_are_and_a_proof_is_always_possible() -> None:
    packing = Packing.of("precise", cohort=3, update_bound=1e-6, max_weight=1.0)
    assert longest(packing, 100_000_000, 1.0, 1e30) == (packing.levels - 1) * 10_001
    assert state(CONTEXT, "north", longest(packing, 100_000_000, 1.0, 1e30)).bits < 100


def test_blocks_are_passed_on_as_they_are_projected() -> None:
    packing = Packing.of("compact", cohort=3, update_bound=1.0, max_weight=1.0)
    vector = np.linspace(-1, 1, 2 * packing.slots + 5, dtype=np.float32)
    blocks = list(pack(private(vector), 1.0, packing, Randomness.seeded(1, "watched")).blocks)
    into = projection(CONTEXT, K)
    assert all(one is other for one, other in zip(blocks, watched(blocks, vector.size, 1, packing, into), strict=True))
    values = np.concatenate([half_levels(block, 1, packing) for block in blocks])
    assert into.numbers == _numbers(values[: vector.size])
    assert (values[vector.size :] == -(packing.levels - 1)).all()


def test_a_limit_that_no_proof_is_possible_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="smaller update_norm"):
        state(CONTEXT, "north", 1 << 49, K)


def test_commitments_that_cancel_are_those_of_a_sum_of_zeros(sites: Sites) -> None:
    one = prove(sites.statements["north"], [1] * K, 5)
    other = prove(sites.statements["south"], [-1] * K, -5)
    assert combine([(1, one.commitment), (1, other.commitment)]) == IDENTITY
    assert add_up([one, other], [0] * K)
    assert not add_up([one, other], [1, *[0] * (K - 1)])
