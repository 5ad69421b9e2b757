"""Mask updates so that only their sum opens: even the server with all sites but two learns only the sum of those two.

All sites hold the decryption key, so a site that colludes with the server could read every other site's update. In a
run with masks, each site adds two kinds of mask, modulo t, to every coefficient but the tag's:

- one for each other site of the cohort, from a secret that only the two share (`privacy.crypto.pairs`). One site adds
  it, the other subtracts it, so they cancel in the sum (Bonawitz et al., CCS 2017). When the contributors agree on
  their set, they release the seeds of masks shared with absent sites, so that these masks can be removed from the sum.
- one of its own, from a fresh seed of 32 bytes, revealed once all contributors have agreed on their set.

A site's header commits to all its seeds, and the site signs every seed that it reveals: a seed that does not match its
commitment is evidence against the site. Every stream is bound to the plan's digest, which covers run, round, attempt
and cohort, so the masks of different attempts are independent. `privacy.crypto.agreement` decides when a site may
reveal which seed. docs/protocol.md has the security argument and its assumptions.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto import merkle
from privacy.crypto.signing import SIGNATURE_BYTES, sign, verify
from privacy.errors import AuthenticityError, MalformedError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from privacy.codec.update import PackedUpdate
    from privacy.crypto.signing import PrivateKey, PublicKey
    from privacy.ledger.ledger import Charge
    from privacy.run.plan import RoundPlan

SEED_BYTES = 32
SEALED_BYTES = SEED_BYTES + 16
REVEAL_BYTES = SIGNATURE_BYTES + SEALED_BYTES
KIND = "seeds"
COMMITMENT_BYTES = 32
_MASKED = RING_DEGREE - 1  # coefficients; the last holds the tag, computed over the masked ones
_T = np.uint64(PLAIN_MODULUS)
_NONCE = bytes(12)  # each key seals one seed


@dataclass(frozen=True, eq=False)
class MaskedUpdate:
    """A packed update ready to be tagged: masked, or unchanged in a run without masks."""

    blocks: Iterator[NDArray[np.uint64]]
    charge: Charge


class Masks:
    """The seeds of all masks of one site for one plan."""

    def __init__(self, secrets: Mapping[str, bytes], seed: bytes, plan: RoundPlan, site: str) -> None:
        """Derive the seeds.

        Args:
            secrets: the secret that the site shares with each other member of the cohort (`privacy.crypto.pairs`).
            seed: the seed of its own mask, 32 bytes.
            plan: the round's plan.
            site: the site's name.
        """
        self._plan, self._site, self._own = plan, site, seed
        self.pairs = {
            other: _derived(secrets[other], b"pair", plan, _names(site, other))
            for other in plan.cohort
            if other != site
        }

    @property
    def commitments(self) -> bytes:
        """The site's commitments towards each member of the cohort, 32 bytes each, in the plan's order."""
        seeds = (self.pairs.get(site) for site in self._plan.cohort)
        return b"".join(pair_commitment(seed) if seed else bytes(COMMITMENT_BYTES) for seed in seeds)

    def mask(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """Add the masks, in place, as the blocks are taken."""
        return _shifted(blocks, *self._streams())

    def unmask(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """Remove the masks, in place, as the blocks are taken."""
        added, removed = self._streams()
        return _shifted(blocks, removed, added)

    def _streams(self) -> tuple[list[Randomness], list[Randomness]]:
        """Start the streams to add and those to subtract."""
        added, removed = _pair_streams(self._site, self.pairs)
        return [_own(self._own, self._plan, self._site), *added], removed


def mask(update: PackedUpdate, masks: Masks | None) -> MaskedUpdate:
    """Mask an update, in place as its blocks are taken; in a run without masks, pass it on."""
    return MaskedUpdate(masks.mask(update.blocks) if masks else update.blocks, update.charge)


def unmask_sum(
    blocks: Iterable[NDArray[np.uint64]],
    seeds: Mapping[str, bytes],
    pairs: Mapping[str, Mapping[str, bytes]],
    plan: RoundPlan,
) -> Iterator[NDArray[np.uint64]]:
    """Remove from a decrypted sum the masks that did not cancel in it.

    Args:
        blocks: the sum's blocks, `(n, 4096)`.
        seeds: the seed of every contributor's own mask.
        pairs: for each contributor, the seeds of the masks that it shares with members who are not in the sum.
        plan: the round's plan.
    """
    added, removed = list[Randomness](), [_own(seed, plan, site) for site, seed in seeds.items()]
    for site, shared in pairs.items():
        put_on, taken_off = _pair_streams(site, shared)
        added, removed = added + taken_off, removed + put_on
    return _shifted(blocks, added, removed)


def commitment(seed: bytes) -> str:
    """Return a header's commitment to the seed of its site's own mask: SHA-256, in hex."""
    return sha256(b"cloister mask" + seed).hexdigest()


def pair_commitment(seed: bytes) -> bytes:
    """Return the commitment to the seed of a mask that two sites share: SHA-256, 32 bytes."""
    return sha256(b"cloister pair" + seed).digest()


def pairs_digest(commitments: bytes) -> str:
    """Return the Merkle root of a site's commitments to all masks that it shares, in hex; empty if there are none.

    Raises:
        MalformedError: if the length is not a whole number of commitments.
    """
    if len(commitments) % COMMITMENT_BYTES:
        msg = f"each commitment to a mask has {COMMITMENT_BYTES} bytes; run the same version everywhere"
        raise MalformedError(msg)
    return merkle.root(_split(commitments)).hex() if commitments else ""


def disputes(commitments: Mapping[str, bytes], plan: RoundPlan) -> list[tuple[str, str]]:
    """Return the pairs of sites that committed to different masks towards each other: one of the two lies.

    Args:
        commitments: for every site that sent an update, its commitments towards the plan's cohort.
        plan: the round's plan.
    """
    index = {site: place for place, site in enumerate(plan.cohort)}
    split = {site: _split(of) for site, of in commitments.items()}
    return [
        (one, other)
        for one, other in combinations(sorted(split), 2)
        if split[one][index[other]] != split[other][index[one]]
    ]


def seal_seed(seed: bytes, secret: bytes, plan: RoundPlan, site: str) -> bytes:
    """Seal a seed to the sites, which share an epoch's secret; the server relays it and cannot read it.

    The key is bound to the seed's commitment, so it never encrypts two seeds under one nonce.
    """
    return seed_sealer(secret, plan, site, commitment(seed)).encrypt(_NONCE, seed, None)


def open_seed(sealed: bytes, secret: bytes, plan: RoundPlan, site: str, committed: str) -> bytes:
    """Open the seed that a site revealed, and check it against the commitment in its header.

    Raises:
        AuthenticityError: if it is not the seed to which that site committed.
    """
    with suppress(InvalidTag, ValueError):
        seed = seed_sealer(secret, plan, site, committed).decrypt(_NONCE, sealed, None)
        if commitment(seed) == committed:
            return seed
    msg = f"the seed of {site}'s mask does not match its commitment; the sum was not opened"
    raise AuthenticityError(msg)


def sign_seed(sealed: bytes, plan: RoundPlan, committed: str, key: PrivateKey) -> bytes:
    """Prepend a site's signature to the sealed seed of its own mask; a false seed is then evidence against it."""
    return sign(key, KIND, _statement(plan, committed, sealed.hex())) + sealed


def verify_seed(document: bytes, plan: RoundPlan, committed: str, key: PublicKey) -> bytes:
    """Return the sealed seed that a site signed.

    Raises:
        AuthenticityError: if it did not sign this seed for this plan and this commitment.
    """
    signature, sealed = document[:SIGNATURE_BYTES], document[SIGNATURE_BYTES:]
    verify(key, KIND, _statement(plan, committed, sealed.hex()), signature)
    return sealed


def sign_pairs(sealed: bytes, plan: RoundPlan, committed: str, absent: Sequence[str], key: PrivateKey) -> bytes:
    """Prepend a site's signature to the sealed seeds of the masks that it shares with absent sites.

    Return empty bytes if no site is absent: there is nothing to sign.
    """
    return sign(key, KIND, _statement(plan, committed, ",".join(absent), sealed.hex())) + sealed if absent else b""


def verify_pairs(document: bytes, plan: RoundPlan, committed: str, absent: Sequence[str], key: PublicKey) -> bytes:
    """Return the sealed, signed seeds of the masks that a site shares with exactly these absent sites.

    Raises:
        AuthenticityError: if the site did not sign these seeds for these absent sites. This is no evidence against it.
    """
    signature, sealed = document[:SIGNATURE_BYTES], document[SIGNATURE_BYTES:]
    if absent or document:
        verify(key, KIND, _statement(plan, committed, ",".join(absent), sealed.hex()), signature)
    return sealed


def seal_pairs(masks: Masks, absent: Sequence[str], secret: bytes, plan: RoundPlan, site: str) -> bytes:
    """Seal the seeds of masks that a site shares with absent sites, each with the Merkle proof of its commitment."""
    leaves = _split(masks.commitments)
    sealed = [
        _pair_sealer(secret, plan, site, other).encrypt(_NONCE, masks.pairs[other], None)
        + merkle.proof(leaves, plan.cohort.index(other))
        for other in absent
    ]
    return b"".join(sealed)


def open_pairs(
    sealed: bytes, absent: Sequence[str], secret: bytes, plan: RoundPlan, site: str, committed: str
) -> dict[str, bytes]:
    """Open the seeds of the masks that a site shares with absent sites; check each against the site's header.

    Raises:
        AuthenticityError: if a seed is not the one to which that site committed, or the number of seeds is wrong.
    """
    length, seeds = SEALED_BYTES + merkle.proof_bytes(len(plan.cohort)), {}
    for number, other in enumerate(absent):
        part = sealed[number * length : (number + 1) * length]
        with suppress(InvalidTag, ValueError):
            seed = _pair_sealer(secret, plan, site, other).decrypt(_NONCE, part[:SEALED_BYTES], None)
            leaf = pair_commitment(seed)
            if merkle.root_of(leaf, plan.cohort.index(other), part[SEALED_BYTES:]).hex() == committed:
                seeds[other] = seed
    if len(seeds) < len(absent) or len(sealed) != length * len(absent):
        msg = (
            f"the seeds of the masks that {site} shares with others do not match its commitments; the sum was "
            "not opened"
        )
        raise AuthenticityError(msg)
    return seeds


def _pair_streams(site: str, seeds: Mapping[str, bytes]) -> tuple[list[Randomness], list[Randomness]]:
    """Start the streams of shared masks that a site adds, and of those that it subtracts."""
    added = [Randomness(seed) for other, seed in seeds.items() if site < other]
    return added, [Randomness(seed) for other, seed in seeds.items() if site > other]


def _statement(plan: RoundPlan, *words: str) -> bytes:
    return " ".join((plan.digest, *words)).encode()


def _names(one: str, other: str) -> bytes:
    return json.dumps(sorted((one, other))).encode()


def _split(commitments: bytes) -> list[bytes]:
    return [commitments[place : place + COMMITMENT_BYTES] for place in range(0, len(commitments), COMMITMENT_BYTES)]


def _pair_sealer(secret: bytes, plan: RoundPlan, site: str, other: str) -> AESGCM:
    """Return the cipher that seals one seed. The plan determines the seed, so a key never seals two."""
    return AESGCM(_derived(secret, b"show", plan, json.dumps([site, other]).encode()))


def seed_sealer(secret: bytes, plan: RoundPlan, site: str, committed: str) -> AESGCM:
    """Return the cipher that seals the seed of a site's own mask, under a key that no other commitment has."""
    return AESGCM(_derived(secret, b"reveal", plan, bytes.fromhex(committed) + site.encode()))


def _own(seed: bytes, plan: RoundPlan, site: str) -> Randomness:
    return Randomness(_derived(seed, b"own", plan, site.encode()))


def _derived(secret: bytes, label: bytes, plan: RoundPlan, owner: bytes) -> bytes:
    info = b"cloister mask " + label + bytes.fromhex(plan.digest) + owner
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)


def _shifted(
    blocks: Iterable[NDArray[np.uint64]], added: Sequence[Randomness], removed: Sequence[Randomness]
) -> Iterator[NDArray[np.uint64]]:
    """Add and subtract streams modulo t, in place; a word holds the sum of up to 2^15 residues of 48 bits."""
    for block in blocks:
        for row in block[:, :_MASKED]:  # a row and a stream's part for it stay in the processor's cache
            for stream in added:
                row += stream.residues(row.size, PLAIN_MODULUS)  # noqa: PLW2901 - in place
            for stream in removed:
                row += _T - stream.residues(row.size, PLAIN_MODULUS)  # noqa: PLW2901 - in place
            row %= _T  # noqa: PLW2901 - in place
        yield block
