"""The three documents with which a site joins: invitation, request to join, welcome.

    invitation   coordinator → site   the authority's certificate, the server's address, and a secret that works once
    request      site → coordinator   the site's public keys, authenticated with that secret
    welcome      coordinator → site   the site's certificate and the roster, signed by the authority

Private keys never leave the folder in which they were made. Whoever carries the invitation must be trusted: the site
learns from it which authority to trust. Request and welcome may travel any way.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT
from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, MalformedError
from privacy.run.roster import Hex32
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey, PublicKey

T = TypeVar("T")

VALID_HOURS = 24.0
"""How long an invitation is valid, unless the coordinator says otherwise."""

_TOKEN, _REQUEST, _WELCOME = "cloister-invitation-1.", b"cloister-request-1", "welcome"
_LARGEST = 64 << 10  # bytes of an invitation or a request
_FIRST_LINE = re.compile(rb"cloister-request-1 ([0-9a-f]{16}) ([0-9a-f]{64})")

Text = Annotated[str, Field(min_length=1, max_length=1 << 14)]


@dataclass(frozen=True, config=STRICT)
class Invitation:
    """What a site needs to ask for membership. It is secret, and works once."""

    consortium: Text
    site: SiteName
    server: Text  # host:port, which agents dial
    authority: Text  # the authority's certificate, as PEM
    secret: Hex32
    expires: float  # seconds since 1970

    @property
    def number(self) -> str:
        """The public number of the invitation, by which the coordinator finds its secret."""
        return sha256(b"cloister invitation" + bytes.fromhex(self.secret)).hexdigest()[:16]

    def to_text(self) -> str:
        """Return the invitation as one line without spaces."""
        return _TOKEN + urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()

    def check_valid(self) -> None:
        """Check that it has not expired.

        Raises:
            AuthenticityError: if it has.
        """
        if self.expires < time.time():
            msg = f"the invitation of {self.site} has expired; ask the coordinator for a new one"
            raise AuthenticityError(msg)


def read_invitation(text: str) -> Invitation:
    """Read an invitation, whatever white space a mail program put into it.

    Raises:
        MalformedError: if it is none.
    """
    line = "".join(text.removeprefix("\ufeff").split())
    if not line.startswith(_TOKEN) or len(line) > _LARGEST:
        msg = f"this is not an invitation, which begins with {_TOKEN}; ask the coordinator for the original"
        raise MalformedError(msg)
    try:
        data = urlsafe_b64decode(line.removeprefix(_TOKEN).encode("ascii"))
    except ValueError as error:
        msg = "the invitation is damaged; ask the coordinator for the original"
        raise MalformedError(msg) from error
    return _read(data, Invitation, "invitation")


@dataclass(frozen=True, config=STRICT)
class JoinRequest:
    """A site's public keys."""

    site: SiteName
    tls_request: Text  # a certificate request, as PEM, which proves that the site has the TLS key
    signing_key: Hex32  # Ed25519
    sealing_key: Text  # MLKEM768-X25519, in base64


def write_request(request: JoinRequest, invitation: Invitation) -> bytes:
    """Return a request, authenticated with the invitation's secret."""
    payload = json.dumps(asdict(request), indent=1).encode()
    return b"%s %s %s\n%s" % (
        _REQUEST, invitation.number.encode(), _code(payload, invitation.secret).encode(), payload
    )  # fmt: skip


def number_of(data: bytes) -> str:
    """Return the number of the invitation that a request answers, before anything else of it is read.

    Raises:
        MalformedError: if it is not a request.
    """
    match = _FIRST_LINE.fullmatch(data.partition(b"\n")[0]) if len(data) <= _LARGEST else None
    if match is None:
        msg = "this is not a request to join; ask the site for the file that `cloister join` wrote"
        raise MalformedError(msg)
    return match[1].decode()


def open_request(data: bytes, invitation: Invitation) -> JoinRequest:
    """Check that a request was made with this invitation, then read it.

    Raises:
        AuthenticityError: if it was made with another, or altered.
        MalformedError: if it does not fit this version of Cloister.
    """
    line, _, payload = data.partition(b"\n")
    match = _FIRST_LINE.fullmatch(line)
    if match is None or not hmac.compare_digest(match[2].decode(), _code(payload, invitation.secret)):
        msg = f"this request does not come from the site that was invited as {invitation.site}, or was altered"
        raise AuthenticityError(msg)
    request = _read(payload, JoinRequest, "request to join")
    if request.site != invitation.site:
        msg = f"{request.site} asks to join with the invitation of {invitation.site}; each site needs its own"
        raise AuthenticityError(msg)
    return request


@dataclass(frozen=True, config=STRICT)
class Welcome:
    """What makes a site a member."""

    site: SiteName
    certificate: Text  # of its TLS key, as PEM
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


def write_welcome(site: str, certificate: str, roster: bytes, authority: PrivateKey) -> bytes:
    """Return a welcome, signed by the authority."""
    welcome = Welcome(site, certificate, b64encode(roster).decode())
    return SignedDocument.make(authority, _WELCOME, json.dumps(asdict(welcome)).encode()).to_bytes()


def open_welcome(data: bytes, authority: PublicKey) -> Welcome:
    """Check the authority's signature, then read a welcome.

    Raises:
        AuthenticityError: if the authority did not sign it.
        MalformedError: if it is none.
    """
    return _read(SignedDocument.open(data, _WELCOME, authority).payload, Welcome, "welcome")


def _code(payload: bytes, secret: str) -> str:
    return hmac.new(bytes.fromhex(secret), _REQUEST + payload, sha256).hexdigest()


def _read(data: bytes, into: type[T], kind: str) -> T:
    try:
        return TypeAdapter(into).validate_json(data)
    except ValidationError as error:
        msg = f"this {kind} is damaged, or of another version of Cloister; ask for the original, and use one version"
        raise MalformedError(msg) from error
