"""The invitation: one line of text with which one site or person joins, once, within a day.

A token is `cloister-invitation-3.` and the base64 (URL-safe, without padding) of

    authority 32 ‖ secret 32 ‖ expires u64be ‖ joining port u16be ‖ three of (u8 length ‖ text) ‖ check 4

where the texts are the name, the server and the role, empty for a site; authority is the SHA-256 of the authority's
certificate, and check the first bytes of the SHA-256 of what stands before it: a cut or mistyped token is noticed
before anything is done with it. The coordinator and the server keep only what an `InvitationRecord` holds. From it
nobody can make the proof or the signature with which somebody asks to join.
"""

from __future__ import annotations

import hmac
import json
import secrets
import struct
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict, field
from hashlib import sha256
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.errors import AuthenticityError, KeyFileError, MalformedError
from privacy.run.people import Role, read_role
from privacy.run.settings import SiteName

VALID_HOURS = 24.0
"""How long an invitation is valid, unless the coordinator says otherwise."""

PROOF_BYTES = 32

_ANY_VERSION, _TOKEN = "cloister-invitation-", "cloister-invitation-3."
_LARGEST = 1 << 10  # characters of a token
_FIXED = struct.Struct(">32s32sQH")
_CHECK = 4  # bytes
_LATEST = 1 << 42  # seconds since 1970; beyond, no calendar has a date for them

Port = Annotated[int, Field(ge=0, lt=1 << 16)]


@dataclass(frozen=True, config=STRICT)
class Invitation:
    """What a site or a person needs to ask for an entry in the roster. It is secret, and works once."""

    name: SiteName
    server: Annotated[str, Field(min_length=1, max_length=255)]  # host:port, which agents dial
    joining_port: Port  # of the same host; 0: the site joins with files only
    authority: Hex32  # SHA-256 of the authority's certificate
    secret: Hex32 = field(repr=False)
    expires: Annotated[int, Field(ge=0, lt=_LATEST)]  # seconds since 1970
    role: Role | None = None  # of a person; None: of a site

    @classmethod
    def make(
        cls, name: str, server: str, joining_port: int, authority: str, hours: float, role: Role | None = None
    ) -> Invitation:
        """Make an invitation with a fresh secret.

        Raises:
            ValidationError: if the name is not one.
        """
        expires = int(time.time() + hours * 3600)
        return cls(name, server, joining_port, authority, secrets.token_hex(32), expires, role)

    @property
    def proof(self) -> bytes:
        """The 32 bytes that show the server that whoever asks has the secret."""
        return self._derived(b"proof")

    @property
    def number(self) -> str:
        """The public number of the invitation: the digest of its proof."""
        return number_of_proof(self.proof)

    @property
    def key(self) -> Ed25519PrivateKey:
        """The key that signs the request."""
        return Ed25519PrivateKey.from_private_bytes(self._derived(b"key"))

    @property
    def record(self) -> InvitationRecord:
        """What the coordinator and the server keep of it."""
        key = self.key.public_key().public_bytes_raw().hex()
        return InvitationRecord(self.name, self.number, key, self.expires, self.role)

    def _derived(self, use: bytes) -> bytes:
        return hmac.digest(bytes.fromhex(self.secret), b"cloister invitation " + use, sha256)

    def to_text(self) -> str:
        """Return the invitation as one line without spaces."""
        data = _FIXED.pack(bytes.fromhex(self.authority), bytes.fromhex(self.secret), self.expires, self.joining_port)
        for text in (self.name, self.server, self.role or ""):
            data += bytes([len(text.encode())]) + text.encode()
        return _TOKEN + urlsafe_b64encode(data + sha256(data).digest()[:_CHECK]).decode().rstrip("=")

    def check_valid(self) -> None:
        """Check that it has not expired.

        Raises:
            AuthenticityError: if it has.
        """
        if self.expires < time.time():
            msg = f"the invitation of {self.name} has expired; ask the coordinator for a new one"
            raise AuthenticityError(msg)


def is_invitation(text: str) -> bool:
    """Return whether a text claims to be an invitation, of this version or another."""
    return _joined(text).startswith(_ANY_VERSION)


def read_invitation(text: str) -> Invitation:
    """Read an invitation, whatever white space a mail program put into it.

    Raises:
        MalformedError: if it is none.
    """
    line = _joined(text)
    if line.startswith(_ANY_VERSION) and not line.startswith(_TOKEN):
        msg = "this invitation is of another version of Cloister; use the coordinator's version, or ask for a new one"
        raise MalformedError(msg)
    if not line.startswith(_TOKEN) or len(line) > _LARGEST:
        msg = f"this is not an invitation, which begins with {_TOKEN}; ask the coordinator for the original"
        raise MalformedError(msg)
    try:
        return _read(_decoded(line.removeprefix(_TOKEN).encode("ascii", "replace")))
    except (ValueError, struct.error) as error:  # base64's and pydantic's errors are ValueErrors
        msg = "the invitation is damaged, or a part of it is missing; copy it again, from its first to its last letter"
        raise MalformedError(msg) from error


def _decoded(encoded: bytes) -> bytes:
    data = urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
    if urlsafe_b64encode(data).rstrip(b"=") != encoded:
        raise ValueError  # a token has only one form
    return data


def _read(data: bytes) -> Invitation:
    body, check = data[:-_CHECK], data[-_CHECK:]
    if sha256(body).digest()[:_CHECK] != check:
        raise ValueError
    authority, secret, expires, port = _FIXED.unpack_from(body)
    texts, rest = [], body[_FIXED.size :]
    for _ in range(3):
        length = rest[0] + 1 if rest else 0
        texts.append(rest[1:length].decode("ascii"))
        rest = rest[length:]
    if rest:
        raise ValueError
    name, server, role = texts
    known = read_role(role) if role else None
    return Invitation(name, server, port, authority.hex(), secret.hex(), expires, known)


def _joined(text: str) -> str:
    return "".join(text.replace("\ufeff", "").split())


def number_of_proof(proof: bytes) -> str:
    """Return the number of the invitation that a proof belongs to."""
    return sha256(b"cloister invitation" + proof).hexdigest()


@dataclass(frozen=True, config=STRICT)
class InvitationRecord:
    """What is kept of an invitation where it is checked: nothing with which anyone could join."""

    name: SiteName
    number: Hex32  # the digest of its proof
    key: Hex32  # Ed25519: verifies the request
    expires: int  # seconds since 1970
    role: Role | None = None  # of a person; None: of a site
    used: Hex32 | None = None  # the signing key of whoever joined with it

    @property
    def request_key(self) -> Ed25519PublicKey:
        """The key that verifies the request."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.key))

    @property
    def file_name(self) -> str:
        """The name of its file: the first half of its number."""
        return record_name(self.number)

    def to_bytes(self) -> bytes:
        """Return the content of its file."""
        return json.dumps(asdict(self), indent=1).encode()

    def proved_by(self, proof: bytes) -> bool:
        """Return whether a proof belongs to this invitation, in constant time."""
        return hmac.compare_digest(number_of_proof(proof), self.number)

    def check_open(self, signing_key: str | None = None) -> None:
        """Check that it can still be used, or was used by this signing key.

        Raises:
            AuthenticityError: if it has expired, or was used by another key.
        """
        if self.used is None:
            if self.expires < time.time():
                msg = f"the invitation of {self.name} has expired; ask the coordinator for a new one"
                raise AuthenticityError(msg)
        elif self.used != signing_key:
            msg = f"the invitation of {self.name} was used before, by other keys; ask the coordinator for a new one"
            raise AuthenticityError(msg)


def record_name(number: str) -> str:
    """Return the name of the file in which the record with this number is kept."""
    return f"{number[:32]}.json"


def read_record(data: bytes, place: str) -> InvitationRecord:
    """Read a record from its file; `place` says where it stands, for the error.

    Raises:
        KeyFileError: if it is damaged.
    """
    try:
        return TypeAdapter(InvitationRecord).validate_json(data)
    except ValidationError as error:
        msg = f"{place} is damaged; invite again: cloister invite"
        raise KeyFileError(msg) from error
