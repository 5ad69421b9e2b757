"""Signatures over exact bytes, each bound to what it is a signature of.

Nothing is ever parsed before its signature holds: `verify` and `SignedDocument.open` take raw bytes and give
them back unchanged. The signed string is `cloister` ‖ kind ‖ length ‖ payload, so that a signature made for one
kind of document (a manifest, a roster, an update) can never pass as one for another.

Updates and manifests are signed with Ed25519 (RFC 8032); rosters with the consortium's P-256 certificate
authority (TLS stacks refuse Ed25519 certificates, so the authority's key cannot be one).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.errors import AuthenticityError, MalformedError

if TYPE_CHECKING:
    from typing import Self

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey

SIGNATURE_BYTES = 64  # of a site's, Ed25519
_MAGIC = b"cloister-signed-1"
_MAX_DOCUMENT = 64 << 20  # bytes; a roster of 10,000 sites takes 21 MB


def _bound(kind: str, payload: bytes) -> bytes:
    name = kind.encode()
    return b"cloister" + struct.pack(">H", len(name)) + name + struct.pack(">Q", len(payload)) + payload


def sign(key: PrivateKey, kind: str, payload: bytes) -> bytes:
    """Sign `payload` as a document of this kind."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(_bound(kind, payload))
    return key.sign(_bound(kind, payload), ECDSA(hashes.SHA256()))


def verify(key: PublicKey, kind: str, payload: bytes, signature: bytes) -> None:
    """Check that `signature` is the key holder's over `payload` as a document of this kind.

    Raises:
        AuthenticityError: if it is not.
    """
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, _bound(kind, payload))
        else:
            key.verify(signature, _bound(kind, payload), ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        msg = f"the signature of this {kind} does not hold: it was altered, or signed with another key"
        raise AuthenticityError(msg) from error


def digest(kind: str, payload: bytes) -> str:
    """SHA-256, in hex, of `payload` as a document of this kind."""
    return sha256(_bound(kind, payload)).hexdigest()


@dataclass(frozen=True)
class SignedDocument:
    """A readable file whose first line signs the rest: `cloister-signed-1 KIND HEX`, newline, payload."""

    kind: str
    payload: bytes
    signature: bytes

    @classmethod
    def make(cls, key: PrivateKey, kind: str, payload: bytes) -> Self:
        """Sign `payload`."""
        return cls(kind, payload, sign(key, kind, payload))

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return b"%s %s %s\n%s" % (_MAGIC, self.kind.encode(), self.signature.hex().encode(), self.payload)

    @classmethod
    def open(cls, data: bytes, kind: str, key: PublicKey) -> Self:
        """Read a document of this kind and check who signed it, before anyone parses its payload.

        Raises:
            MalformedError: if `data` is no such document.
            AuthenticityError: if the signature does not hold.
        """
        if len(data) > _MAX_DOCUMENT:
            msg = f"this {kind} has {len(data) >> 20} MiB, more than the {_MAX_DOCUMENT >> 20} MiB that are read of one"
            raise MalformedError(msg)
        line, newline, payload = data.partition(b"\n")
        words = line.split(b" ")
        if not newline or len(words) != 3 or words[0] != _MAGIC:  # noqa: PLR2004
            msg = f"this is not a signed Cloister {kind}; ask the coordinator for the original file"
            raise MalformedError(msg)
        try:
            said, signature = words[1].decode("ascii"), bytes.fromhex(words[2].decode("ascii"))
        except ValueError as error:
            msg = f"the first line of this {kind} is damaged; ask the coordinator for the original file"
            raise MalformedError(msg) from error
        if signature.hex().encode() != words[2]:  # capitals, or spaces between: one document, one form
            msg = f"the first line of this {kind} was rewritten; ask the coordinator for the original file"
            raise MalformedError(msg)
        if said != kind:
            msg = f"this is a signed {said[:40]!a}, where a {kind} is needed"
            raise MalformedError(msg)
        verify(key, kind, payload, signature)
        return cls(kind, payload, signature)

    @property
    def digest(self) -> str:
        """The document's name in the protocol: a digest of what was signed."""
        return digest(self.kind, self.payload)
