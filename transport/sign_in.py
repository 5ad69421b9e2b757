r"""How a site and its server prove who they are inside a channel whose TLS was ended on the way.

Mutual TLS does not get through a load balancer, an ingress or an inspecting proxy. There, each signs what the other has
chosen at random, in two calls; the site then shows a token with every call (RFC 6750) until it has to sign in again.
What a site sends before it is known travels in a call's metadata, which gRPC bounds: the server reads no message of a
stranger.

    site → server   protocol u32 ‖ nonce 32 ‖ site
    server → site   challenge 56 ‖ clock f64 ‖ roster version u64 ‖ u16 length ‖ certificate, DER ‖ signature
    site → server   protocol u32 ‖ challenge 56 ‖ clock f64 ‖ roster version u64 ‖ signature 64 ‖ site
    server → site   token 32 ‖ seconds that it is valid, u32

    the server signs, with the key of its certificate,
        "challenge": authority 32 ‖ nonce 32 ‖ challenge 56 ‖ clock f64 ‖ roster version u64 ‖ site
    the site signs, with its signing key,
        "sign-in":   authority 32 ‖ server's key 32 ‖ challenge 56 ‖ clock f64 ‖ roster version u64 ‖ site

Numbers are big-endian. The authority is the SHA-256 of its certificate, the server's key that of its public key: a
signature is worth nothing at another server or in another consortium. `privacy.crypto.signing` binds each to its kind.
"""

from __future__ import annotations

import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import TypeAdapter, ValidationError

from privacy.crypto.signing import SIGNATURE_BYTES
from privacy.errors import MalformedError
from privacy.run.clocks import LATEST
from privacy.run.enrolment import LARGEST_CERTIFICATE
from privacy.run.settings import SiteName
from transport.framing import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CHALLENGE, SIGN_IN = "challenge", "sign-in"
"""The kinds of what server and site sign."""

NONCE_BYTES, CHALLENGE_BYTES, TOKEN_BYTES = 32, 56, 32
_HEADER, _CARRIER = "authorization", "cloister-bin"
_REQUEST = struct.Struct(f">I{NONCE_BYTES}s")
_CHALLENGE = struct.Struct(f">{CHALLENGE_BYTES}sdQH")
_SIGN_IN = struct.Struct(f">I{CHALLENGE_BYTES}sdQ{SIGNATURE_BYTES}s")
_TOKEN = struct.Struct(f">{TOKEN_BYTES}sI")
_NAME = TypeAdapter[str](SiteName)
_LONGEST_SIGNATURE = 80  # bytes of a P-256 signature, DER
_LONGEST_LIFE = 24 * 3600  # seconds


@dataclass(frozen=True)
class Signer:
    """A site that signs in."""

    site: str
    key: Ed25519PrivateKey
    authority: Path  # the certificate of the authority that it trusts
    roster_version: int
    ca_bundle: Path  # whoever issues the certificate of what ends TLS


@dataclass(frozen=True)
class Challenge:
    """What a server has a site sign, and its own proof."""

    challenge: bytes
    clock: float  # the server's, in seconds since 1970
    roster_version: int
    certificate: bytes  # the server's, DER; not checked yet
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the server's answer."""
        fixed = _CHALLENGE.pack(self.challenge, self.clock, self.roster_version, len(self.certificate))
        return fixed + self.certificate + self.signature

    def signed_part(self, authority: bytes, nonce: bytes, site: str) -> bytes:
        """Return what the server signs for a site that sent this nonce."""
        return authority + nonce + self.challenge + _times(self.clock, self.roster_version) + site.encode()


@dataclass(frozen=True)
class SignIn:
    """A site's answer to a challenge."""

    site: str
    challenge: bytes
    clock: float  # the site's, in seconds since 1970
    roster_version: int
    signature: bytes = bytes(SIGNATURE_BYTES)

    def to_bytes(self) -> bytes:
        """Return the site's answer."""
        fixed = _SIGN_IN.pack(PROTOCOL, self.challenge, self.clock, self.roster_version, self.signature)
        return fixed + self.site.encode()

    def signed_part(self, authority: bytes, server_key: bytes) -> bytes:
        """Return what the site signs, for a server with the key of this digest."""
        return authority + server_key + self.challenge + _times(self.clock, self.roster_version) + self.site.encode()


def _times(clock: float, roster_version: int) -> bytes:
    return struct.pack(">dQ", clock, roster_version)


def challenge_request(nonce: bytes, site: str) -> bytes:
    """Return a site's request for a challenge."""
    return _REQUEST.pack(PROTOCOL, nonce) + site.encode()


def read_challenge_request(data: bytes) -> tuple[bytes, str]:
    """Return the nonce and the name in a request for a challenge.

    Raises:
        MalformedError: if it is none, or of another protocol.
    """
    (protocol, nonce), name = _fixed(_REQUEST, data, "request for a challenge")
    return nonce, _site(protocol, name)


def read_challenge(data: bytes) -> Challenge:
    """Read a server's challenge; nothing in it is checked yet.

    Raises:
        MalformedError: if it is none.
    """
    (challenge, clock, version, length), rest = _fixed(_CHALLENGE, data, "challenge")
    certificate, signature = rest[:length], rest[length:]
    if not length <= LARGEST_CERTIFICATE or not 0 < len(signature) <= _LONGEST_SIGNATURE:
        _wrong("challenge")
    return Challenge(challenge, _clock(clock, "challenge"), version, certificate, signature)


def read_sign_in(data: bytes) -> SignIn:
    """Read a site's answer to a challenge; its signature is not checked yet.

    Raises:
        MalformedError: if it is none, or of another protocol.
    """
    (protocol, challenge, clock, version, signature), name = _fixed(_SIGN_IN, data, "sign-in")
    return SignIn(_site(protocol, name), challenge, _clock(clock, "sign-in"), version, signature)


def token_answer(token: bytes, seconds: int) -> bytes:
    """Return a server's answer to a site that has signed in."""
    return _TOKEN.pack(token, seconds)


def read_token_answer(data: bytes) -> tuple[bytes, int]:
    """Return the token of a site that has signed in, and for how many seconds it is valid.

    Raises:
        MalformedError: if it is no such answer.
    """
    (token, seconds), rest = _fixed(_TOKEN, data, "token")
    if rest or not 0 < seconds <= _LONGEST_LIFE:
        _wrong("token")
    return token, seconds


def authorization(token: bytes) -> tuple[tuple[str, str], ...]:
    """Return the metadata that shows a token with a call."""
    return ((_HEADER, f"Bearer {urlsafe_b64encode(token).decode().rstrip('=')}"),)


def token_in(metadata: Iterable[tuple[str, Any]] | None) -> bytes | None:
    """Return the token that came with a call; None if none came; empty if it is malformed."""
    values = [value for name, value in metadata or () if name == _HEADER]
    if not values:
        return None
    found = re.fullmatch(r"[Bb]earer ([A-Za-z0-9_-]{43})", values[0]) if isinstance(values[0], str) else None
    return urlsafe_b64decode(f"{found[1]}=") if found and len(values) == 1 else b""


def carrying(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Return the metadata that carries what a site sends before it is known."""
    return ((_CARRIER, data),)


def carried(metadata: Iterable[tuple[str, Any]] | None) -> bytes:
    """Return what a call's metadata carries; empty if nothing, or more than one thing."""
    values = [value for name, value in metadata or () if name == _CARRIER]
    return values[0] if len(values) == 1 and isinstance(values[0], bytes) else b""


def _fixed(form: struct.Struct, data: bytes, kind: str) -> tuple[tuple[Any, ...], bytes]:
    if len(data) < form.size:
        _wrong(kind)
    return form.unpack_from(data), data[form.size :]


def _site(protocol: int, name: bytes) -> str:
    if protocol != PROTOCOL:
        msg = f"protocol {protocol} is not supported, only {PROTOCOL}; install the same version of Cloister everywhere"
        raise MalformedError(msg)
    try:
        return _NAME.validate_python(name.decode("ascii", "replace"))
    except ValidationError:
        _wrong("name of a site")


def _clock(clock: float, kind: str) -> float:
    if not 0 <= clock <= LATEST:  # nor NaN
        _wrong(kind)
    return clock


def _wrong(kind: str) -> NoReturn:
    msg = f"this is no {kind} as Cloister sends it; install the same version of Cloister everywhere"
    raise MalformedError(msg)
