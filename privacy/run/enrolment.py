"""The documents with which an invited site or person gets into the roster: request and welcome.

    request      → coordinator    the public keys, signed with a key that is derived from the invitation
    welcome      coordinator →    the roster and, for a site, its certificate, signed by the authority, whose
                                  certificate stands before them

Private keys never leave the folder in which they were made. Whoever carries the invitation must be trusted: site and
person learn from it which authority to trust. Request and welcome may travel any way.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.crypto.signing import SignedDocument, sign, verify
from privacy.errors import AuthenticityError, MalformedError
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey, PublicKey
    from privacy.run.invitation import Invitation, InvitationRecord

T = TypeVar("T")

LARGEST_REQUEST = 16 << 10  # bytes
LARGEST_CERTIFICATE = 4 << 10  # bytes of the authority's, as DER
_REQUEST, _WELCOME = "request", "welcome"
_WELCOME_LINE = b"cloister-welcome-3"
_HEX = re.compile(rb"(?:[0-9a-f]{2})+")
_FIRST_LINE = re.compile(rb"cloister-request-3 ([0-9a-f]{64}) ([0-9a-f]{128})")

Text = Annotated[str, Field(min_length=1, max_length=1 << 14)]


@dataclass(frozen=True, config=STRICT)
class JoinRequest:
    """A site's public keys."""

    name: SiteName
    tls_request: Text  # a certificate request, as PEM, which proves that the site has the TLS key
    signing_key: Hex32  # Ed25519
    sealing_key: Text  # MLKEM768-X25519, in base64


@dataclass(frozen=True, config=STRICT)
class PersonRequest:
    """A person's public key. The role is in the coordinator's record of the invitation."""

    name: SiteName
    signing_key: Hex32  # Ed25519


AnyRequest = JoinRequest | PersonRequest


def write_request(request: AnyRequest, invitation: Invitation) -> bytes:
    """Return a request, signed with the invitation's key."""
    payload = json.dumps(asdict(request), indent=1).encode()
    signature = sign(invitation.key, _REQUEST, payload).hex()
    return b"cloister-request-3 %s %s\n%s" % (invitation.number.encode(), signature.encode(), payload)


def number_of(data: bytes) -> str:
    """Return the number of the invitation that a request answers, before anything else of it is read.

    Raises:
        MalformedError: if it is not a request.
    """
    return _first_line(data)[0]


def _first_line(data: bytes) -> tuple[str, bytes]:
    matched = _FIRST_LINE.fullmatch(data.partition(b"\n")[0]) if len(data) <= LARGEST_REQUEST else None
    if matched is None:
        msg = "this is not a request to join; ask for the file that `cloister join` wrote"
        raise MalformedError(msg)
    return matched[1].decode(), bytes.fromhex(matched[2].decode())


def open_request(data: bytes, invited: InvitationRecord) -> AnyRequest:
    """Check that a request was made with this invitation, then read it: a site's, or a person's if a role is invited.

    Raises:
        AuthenticityError: if it was made with another, or altered.
        MalformedError: if it is not a request, or does not fit this version of Cloister.
    """
    number, signature = _first_line(data)
    payload = data.partition(b"\n")[2]
    foreign = f"this request does not come from whoever was invited as {invited.name}, or was altered"
    if number != invited.number:
        raise AuthenticityError(foreign)
    try:
        verify(invited.request_key, _REQUEST, payload, signature)
    except AuthenticityError as error:
        raise AuthenticityError(foreign) from error
    kind: type[AnyRequest] = PersonRequest if invited.role else JoinRequest
    request = _read(payload, kind, "request to join")
    if request.name != invited.name:
        msg = f"{request.name} asks to join with the invitation of {invited.name}; each needs its own"
        raise AuthenticityError(msg)
    return request


@dataclass(frozen=True, config=STRICT)
class Welcome:
    """What makes a site a member, and what a person gets who is in the roster."""

    name: SiteName
    certificate: Text | None  # of a site's TLS key, as PEM; None: a person has none
    roster: str  # the signed roster, in base64

    @property
    def roster_file(self) -> bytes:
        """The signed roster.

        Raises:
            MalformedError: if it is not base64.
        """
        try:
            return b64decode(self.roster, validate=True)
        except ValueError as error:
            msg = "the roster in this welcome is damaged; ask the coordinator for the original file"
            raise MalformedError(msg) from error


def write_welcome(
    name: str, certificate: str | None, roster: bytes, authority: PrivateKey, authority_der: bytes
) -> bytes:
    """Return a welcome, signed by the authority, behind a line with the authority's certificate."""
    welcome = Welcome(name, certificate, b64encode(roster).decode())
    document = SignedDocument.make(authority, _WELCOME, json.dumps(asdict(welcome)).encode())
    return _WELCOME_LINE + b" " + authority_der.hex().encode() + b"\n" + document.to_bytes()


def is_welcome(data: bytes) -> bool:
    """Return whether a file claims to be a welcome."""
    return data.startswith(_WELCOME_LINE)


def authority_in(data: bytes) -> tuple[bytes, bytes]:
    """Return the authority's certificate that a welcome carries, as DER, and the signed rest.

    Nothing of either is trusted yet: first compare the certificate's SHA-256 with that in the invitation.

    Raises:
        MalformedError: if it is not a welcome.
    """
    line, _, document = data.partition(b"\n")
    name, _, certificate = line.partition(b" ")
    if name == _WELCOME_LINE and len(certificate) <= 2 * LARGEST_CERTIFICATE and _HEX.fullmatch(certificate):
        return bytes.fromhex(certificate.decode()), document
    msg = "this is not a welcome; ask the coordinator for the file that `cloister roster approve` wrote"
    raise MalformedError(msg)


def open_welcome(document: bytes, authority: PublicKey) -> Welcome:
    """Check the authority's signature of a welcome's signed part, then read it.

    Raises:
        AuthenticityError: if the authority did not sign it.
        MalformedError: if it is none.
    """
    return _read(SignedDocument.open(document, _WELCOME, authority).payload, Welcome, "welcome")


def _read(data: bytes, into: type[T], kind: str) -> T:
    try:
        return TypeAdapter(into).validate_json(data)
    except ValidationError as error:
        msg = f"this {kind} is damaged, or of another version of Cloister; ask for the original, and use one version"
        raise MalformedError(msg) from error
