"""Make and distribute the keys of a key epoch: one site makes them and seals them to every member.

The leader makes the decryption key and the tag key of a new epoch and seals them to every member with HPKE (RFC 9180,
base mode, with the post-quantum hybrid KEM MLKEM768-X25519) under the key that the roster certifies for that member.
HPKE base mode does not authenticate the sender, so the leader signs each letter; `info` binds consortium, roster,
epoch, fingerprint, leader and recipient. Recipients' keys come from the roster that the authority signed, never from
the server, which only relays the letters.

A site that leaves the consortium keeps what it could read before; a new epoch keeps it out of what comes after.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from privacy.config import STRICT, Hex32
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.mac import MacKey
from privacy.crypto.signing import SignedDocument
from privacy.crypto.tag import KEY_BYTES, TagKey
from privacy.errors import AuthenticityError, KeyFileError, MalformedError, ProtocolError
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from typing import Self

    from privacy.crypto.signing import PrivateKey
    from privacy.run.roster import Roster

KIND = "epoch"
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_MLKEM_SEED, _MLKEM_PUBLIC, _X25519 = 64, 1184, 32
_DIGEST_BYTES = 32


class SealingKey:
    """A site's private HPKE key, which opens what others seal to the site."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != _MLKEM_SEED + _X25519:
            msg = f"a sealing key has {_MLKEM_SEED + _X25519} bytes, not {len(seed)}; restore it from the site's backup"
            raise KeyFileError(msg)
        self._seed = seed
        self._mlkem = MLKEM768PrivateKey.from_seed_bytes(seed[:_MLKEM_SEED])
        self._x25519 = X25519PrivateKey.from_private_bytes(seed[_MLKEM_SEED:])

    @classmethod
    def generate(cls) -> Self:
        """Make a new key."""
        return cls(os.urandom(_MLKEM_SEED + _X25519))

    def to_bytes(self) -> bytes:
        """Return the secret seed."""
        return self._seed

    @property
    def public(self) -> str:
        """The public key as the roster lists it, in base64."""
        both = self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        return b64encode(both).decode()

    def open(self, sealed: bytes, info: bytes) -> bytes:
        """Open a message sealed to this key with this `info`.

        Raises:
            AuthenticityError: if it was altered, or sealed to another key or with another `info`.
        """
        try:
            return _SUITE.decrypt(sealed, MLKEM768X25519PrivateKey(self._mlkem, self._x25519), info=info)
        except InvalidTag as error:
            msg = "a letter does not open: it was altered, or sealed to a key other than this site's"
            raise AuthenticityError(msg) from error


def seal(public: str, payload: bytes, info: bytes) -> bytes:
    """Seal a payload to the key that the roster lists for a site.

    Raises:
        MalformedError: if `public` is not a key.
    """
    try:
        both = b64decode(public, validate=True)
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(both[:_MLKEM_PUBLIC]),
            X25519PublicKey.from_public_bytes(both[_MLKEM_PUBLIC:]),
        )
        return _SUITE.encrypt(payload, key, info=info)
    except ValueError as error:
        msg = f"the roster lists an unusable sealing key ({error}); ask the coordinator for a new roster"
        raise MalformedError(msg) from error


@dataclass(frozen=True, eq=False)
class EpochKeys:
    """The secrets that all sites share and the server must not have."""

    epoch: int
    decryption: DecryptionKey
    secret: bytes  # from which the keys of tags, codes and sealed seeds are derived

    @classmethod
    def generate(cls, epoch: int) -> Self:
        """Make the keys of a new epoch."""
        return cls(epoch, DecryptionKey.generate(), os.urandom(KEY_BYTES))

    def to_bytes(self) -> bytes:
        """Return epoch, tag key and decryption key, then their SHA-256, since any 32 bytes would pass for a tag key."""
        data = self.epoch.to_bytes(8, "big") + self.secret + self.decryption.to_bytes()
        return data + sha256(data).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Undo `to_bytes`.

        Raises:
            KeyFileError: if `data` is damaged.
        """
        data, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if sha256(data).digest() != digest:
            msg = "the keys of a key epoch are damaged; restore them from the site's backup"
            raise KeyFileError(msg)
        secret = data[8 : 8 + KEY_BYTES]
        decryption = DecryptionKey.from_bytes(data[8 + KEY_BYTES :])
        return cls(int.from_bytes(data[:8], "big"), decryption, secret)

    @cached_property
    def tag(self) -> TagKey:
        """The key of sums' tags."""
        return TagKey(self.secret)

    @cached_property
    def mac(self) -> MacKey:
        """The key of codes on ciphertexts."""
        return MacKey(self.secret)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the keys, in hex. Sites compare it and sign it with every update, to know that their keys agree."""
        return sha256(b"cloister epoch keys" + self.to_bytes()).hexdigest()


@checked_dataclass(frozen=True, config=STRICT)
class _Letter:
    """The content of a letter: an epoch's keys, sealed to one member. The leader signs it."""

    consortium: str
    roster: Annotated[int, Field(ge=1)]  # version
    epoch: Annotated[int, Field(ge=1)]
    fingerprint: Hex32  # of the keys inside
    leader: SiteName
    recipient: SiteName
    sealed: str  # base64
    format: Literal[1] = 1

    @property
    def info(self) -> bytes:
        """The `info` to which HPKE binds the sealed keys."""
        bound = [self.consortium, self.roster, self.epoch, self.fingerprint, self.leader, self.recipient]
        return b"cloister epoch " + json.dumps(bound).encode()


def write_letters(keys: EpochKeys, roster: Roster, leader: str, signing_key: PrivateKey) -> dict[str, bytes]:
    """Seal an epoch's keys to every member of the roster, as the leader; return a signed letter for each."""
    letters = {}
    for member in roster.members:
        blank = _Letter(roster.consortium, roster.version, keys.epoch, keys.fingerprint, leader, member.site, "")
        sealed = seal(member.sealing_key, keys.to_bytes(), blank.info)
        letter = replace(blank, sealed=b64encode(sealed).decode())
        payload = json.dumps(asdict(letter), sort_keys=True).encode()
        letters[member.site] = SignedDocument.make(signing_key, KIND, payload).to_bytes()
    return letters


def read_letter(data: bytes, leader: str, roster: Roster, site: str, key: SealingKey) -> EpochKeys:
    """Open the letter with the keys of a key epoch for `site`.

    Raises:
        AuthenticityError: if the leader did not sign it, it was sealed to another key, or it holds other keys than it
            names.
        KeyFileError: if the keys inside are damaged.
        MalformedError: if it is not a letter, or no honest site makes such keys.
        ProtocolError: if it is for another consortium, roster, leader or recipient.
    """
    document = SignedDocument.open(data, KIND, roster.member(leader).verification_key)
    try:
        letter = TypeAdapter(_Letter).validate_json(document.payload)
        sealed = b64decode(letter.sealed, validate=True)
    except (ValidationError, ValueError) as error:
        msg = f"the letter with the keys of a key epoch for {site} is malformed; run the same version everywhere"
        raise MalformedError(msg) from error
    named = (letter.consortium, letter.roster, letter.leader, letter.recipient)
    if named != (roster.consortium, roster.version, leader, site):
        msg = (
            f"the letter to {site} is for another consortium, roster, leader or recipient; {site} does not "
            "accept its keys"
        )
        raise ProtocolError(msg)
    keys = EpochKeys.from_bytes(key.open(sealed, letter.info))
    if (keys.epoch, keys.fingerprint) != (letter.epoch, letter.fingerprint):
        msg = (
            f"the keys in {leader}'s letter to {site} are not those that the letter names; {site} does not accept them"
        )
        raise AuthenticityError(msg)
    keys.decryption.check_form()
    return keys
