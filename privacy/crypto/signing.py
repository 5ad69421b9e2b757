"""Sign and verify exact bytes, each signature bound to one kind of document.

Nothing is parsed before its signature is verified: `verify` and `SignedDocument.open` take raw bytes, and the payload
comes back unchanged. The signed string is `cloister` ‖ kind ‖ payload, with the lengths of kind and payload, so that a
signature for one kind of document (a manifest, a roster, an update) never passes for another.

Sites sign with Ed25519 (RFC 8032). The consortium's certificate authority signs rosters with P-256, because TLS stacks
refuse Ed25519 certificates.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
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

SIGNATURE_BYTES = 64  # of a site's signature, Ed25519
_MAGIC = b"cloister-signed-1"
_MAX_DOCUMENT = 64 << 20  # bytes; a roster of 10,000 sites takes 21 MB
_REMEMBERED = 4096  # valid signatures; a round of 200 sites with masks has up to 800, and each site checks some thrice


def _bound(kind: str, payload: bytes) -> bytes:
    name = kind.encode()
    return b"cloister" + struct.pack(">H", len(name)) + name + struct.pack(">Q", len(payload)) + payload


def sign(key: PrivateKey, kind: str, payload: bytes) -> bytes:
    """Sign `payload` as a document of this kind."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(_bound(kind, payload))
    return key.sign(_bound(kind, payload), ECDSA(hashes.SHA256()))


def verify(key: PublicKey, kind: str, payload: bytes, signature: bytes) -> None:
    """Check that the key's holder signed `payload` as a document of this kind.

    Raises:
        AuthenticityError: if the signature does not hold.
    """
    bound = _bound(kind, payload)
    try:
        if not isinstance(key, Ed25519PublicKey):
            key.verify(signature, bound, ECDSA(hashes.SHA256()))
            return
        valid = _note(sha256(key.public_bytes_raw() + sha256(signature).digest() + bound).digest())
        if not valid:
            key.verify(signature, bound)
            valid.append(True)
    except InvalidSignature as error:
        msg = f"the signature of this {kind} is not valid: the {kind} was altered, or signed with another key"
        raise AuthenticityError(msg) from error


def forget_signatures() -> None:
    """Forget which signatures were valid: the next ones are others."""
    _note.cache_clear()


@lru_cache(maxsize=_REMEMBERED)
def _note(digest: bytes) -> list[bool]:
    """Return the note on a signature, by the digest of key, signature and document; it is empty unless it was valid."""
    del digest
    return []


def digest(kind: str, payload: bytes) -> str:
    """Return the SHA-256, in hex, of `payload` as a document of this kind."""
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
        """Read a document of this kind and verify its signature, before anyone parses its payload.

        Raises:
            MalformedError: if `data` is no such document.
            AuthenticityError: if the signature does not hold.
        """
        if len(data) > _MAX_DOCUMENT:
            msg = f"this {kind} has {len(data) >> 20} MiB; the limit is {_MAX_DOCUMENT >> 20} MiB"
            raise MalformedError(msg)
        line, newline, payload = data.partition(b"\n")
        words = line.split(b" ")
        if not newline or len(words) != 3 or words[0] != _MAGIC:  # noqa: PLR2004
            msg = f"this is not a signed Cloister {kind}; ask the coordinator for the original file"
            raise MalformedError(msg)
        try:
            signed_kind, signature = words[1].decode("ascii"), bytes.fromhex(words[2].decode("ascii"))
        except ValueError as error:
            msg = f"the first line of this {kind} is damaged; ask the coordinator for the original file"
            raise MalformedError(msg) from error
        if signature.hex().encode() != words[2]:  # capitals or spaces: a document has only one form
            msg = f"the first line of this {kind} was rewritten; ask the coordinator for the original file"
            raise MalformedError(msg)
        if signed_kind != kind:
            msg = f"this is a signed {signed_kind[:40]!a}; a {kind} is needed here"
            raise MalformedError(msg)
        verify(key, kind, payload, signature)
        return cls(kind, payload, signature)

    @property
    def digest(self) -> str:
        """The document's identity in the protocol: the digest of the signed bytes."""
        return digest(self.kind, self.payload)
