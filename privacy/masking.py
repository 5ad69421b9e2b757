"""Masks that open once: with them, the server and all sites but two together learn no more than the sum of those two.

All sites hold the decryption key, so a site that colludes with the server could read every other site's update. Under
`collusion_resistant = true` each site adds two kinds of masks, modulo t, to every coefficient but the tag's:

- one for each other site of the cohort, from a secret that only the two share (X25519, RFC 7748). One site adds it, the
  other takes it away: in the sum over the whole cohort they cancel (Bonawitz et al., CCS 2017).
- one of its own, from a fresh seed of 32 bytes. Its header commits to the seed. The site reveals it to the other sites,
  for at most one attempt of a round, once it has seen the signed header of everybody whom it shares masks with.

Every stream is bound to the plan's digest, which covers run, round, attempt and cohort: another attempt has masks that
have nothing to do with these. docs/protocol.md has the argument, and what it assumes.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.errors import AuthenticityError, KeyFileError, MalformedError
from privacy.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from privacy.ledger import Charge
    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from privacy.update import PackedUpdate

SEED_BYTES = 32
SEALED_BYTES = SEED_BYTES + 16
_MASKED = RING_DEGREE - 1  # coefficients; the last is the tag's, which is of the masked ones
_T = np.uint64(PLAIN_MODULUS)
_NONCE = bytes(12)  # each key seals one seed


@dataclass(frozen=True, eq=False)
class MaskedUpdate:
    """A packed update as it is tagged: masked, or, in a run without masks, as it was packed."""

    blocks: Iterator[NDArray[np.uint64]]
    charge: Charge


class MaskingKey:
    """A site's X25519 key, from which it shares a secret with every other site."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SEED_BYTES:
            msg = f"a masking key has {SEED_BYTES} bytes, not {len(secret)}; restore it from the site's backup"
            raise KeyFileError(msg)
        self._secret, self._key = secret, X25519PrivateKey.from_private_bytes(secret)

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        return cls(os.urandom(SEED_BYTES))

    def to_bytes(self) -> bytes:
        """Return the secret."""
        return self._secret

    @cached_property
    def public(self) -> str:
        """The public key as the roster lists it, in hex."""
        return self._key.public_key().public_bytes_raw().hex()

    def shared_with(self, public: str) -> bytes:
        """Return the secret shared with the holder of a public key.

        Raises:
            MalformedError: if that key makes the secret one that everybody knows.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
        except ValueError as error:
            msg = "the roster lists an unusable masking key; ask the coordinator for a new roster"
            raise MalformedError(msg) from error


class Masks:
    """All masks of one site for one plan, as streams of residues modulo t, from their start."""

    def __init__(self, key: MaskingKey, seed: bytes, plan: RoundPlan, site: str, roster: Roster) -> None:
        self._added, self._taken = [_own(seed, plan, site)], list[Randomness]()
        for other in plan.cohort:
            if other != site:
                pair = json.dumps(sorted((site, other))).encode()
                stream = _stream(key.shared_with(roster.member(other).masking_key), b"pair", plan, pair)
                (self._added if site < other else self._taken).append(stream)

    def mask(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """Put the masks on."""
        return _shifted(blocks, self._added, self._taken)

    def unmask(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """Take the masks off."""
        return _shifted(blocks, self._taken, self._added)


def mask(update: PackedUpdate, masks: Masks | None) -> MaskedUpdate:
    """Mask an update, in place as its blocks are taken; in a run without masks, pass it on."""
    return MaskedUpdate(masks.mask(update.blocks) if masks else update.blocks, update.charge)


def unmask_sum(
    blocks: Iterable[NDArray[np.uint64]], seeds: dict[str, bytes], plan: RoundPlan
) -> Iterator[NDArray[np.uint64]]:
    """Take every site's own mask off the decrypted sum of the whole cohort; those between sites have cancelled."""
    return _shifted(blocks, [], [_own(seed, plan, site) for site, seed in seeds.items()])


def commitment(seed: bytes) -> str:
    """SHA-256, in hex: what a header says of the seed of its site's own mask."""
    return sha256(b"cloister mask" + seed).hexdigest()


def seal_seed(seed: bytes, secret: bytes, plan: RoundPlan, site: str) -> bytes:
    """Seal a seed to the sites, who share an epoch's secret; the server, who relays it, cannot read it.

    The key is bound to the seed's commitment, so that it never seals two seeds under one nonce.
    """
    return _sealer(secret, plan, site, commitment(seed)).encrypt(_NONCE, seed, None)


def open_seed(sealed: bytes, secret: bytes, plan: RoundPlan, site: str, committed: str) -> bytes:
    """Open the seed that a site revealed, and hold it against its header.

    Raises:
        AuthenticityError: if it is not the one to which that site committed.
    """
    with suppress(InvalidTag, ValueError):
        seed = _sealer(secret, plan, site, committed).decrypt(_NONCE, sealed, None)
        if commitment(seed) == committed:
            return seed
    msg = f"the seed of {site}'s mask is not the one to which it committed; the sum was not opened"
    raise AuthenticityError(msg)


def _sealer(secret: bytes, plan: RoundPlan, site: str, committed: str) -> AESGCM:
    return AESGCM(_derived(secret, b"reveal", plan, bytes.fromhex(committed) + site.encode()))


def _own(seed: bytes, plan: RoundPlan, site: str) -> Randomness:
    return _stream(seed, b"own", plan, site.encode())


def _stream(secret: bytes, label: bytes, plan: RoundPlan, whose: bytes) -> Randomness:
    return Randomness(_derived(secret, label, plan, whose))


def _derived(secret: bytes, label: bytes, plan: RoundPlan, whose: bytes) -> bytes:
    info = b"cloister mask " + label + bytes.fromhex(plan.digest) + whose
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)


def _shifted(
    blocks: Iterable[NDArray[np.uint64]], added: Sequence[Randomness], taken: Sequence[Randomness]
) -> Iterator[NDArray[np.uint64]]:
    """Add and take away streams modulo t, in place; up to 2^15 residues of 48 bits fit into a word."""
    for block in blocks:
        part = block[:, :_MASKED]
        for stream in added:
            part += stream.residues(part.size, PLAIN_MODULUS).reshape(part.shape)
        for stream in taken:
            part += _T - stream.residues(part.size, PLAIN_MODULUS).reshape(part.shape)
        part %= _T
        yield block
