"""The parsers of joining: tokens, requests, welcomes, and what passes at the joining port."""

from __future__ import annotations

import io
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typing_extensions import override

from privacy.crypto.signing import SignedDocument, sign
from privacy.errors import UnreachableError
from privacy.run.enrolment import (
    JoinRequest,
    PersonRequest,
    authority_in,
    number_of,
    open_request,
    open_welcome,
    write_request,
    write_welcome,
)
from privacy.run.invitation import Invitation, read_invitation, read_record
from transport.framing import (
    measurement_answer,
    measurement_request,
    read_measurement,
    read_roster_request,
    roster_request,
)
from transport.joining import (
    Answer,
    Outcome,
    Standing,
    State,
    greeting,
    read_answer,
    read_greeting,
    read_request,
    read_standing,
    request_bytes,
)
from transport.pki import Authority, open_server_certificate
from transport.sign_in import (
    Challenge,
    SignIn,
    challenge_request,
    read_challenge,
    read_challenge_request,
    read_sign_in,
    read_token_answer,
    token_answer,
    token_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Entry = tuple[str, Callable[[bytes], object], list[bytes]]

_INVITATION = Invitation("north", "fed.example.org:9440", 9441, "0f" * 32, "ab" * 32, 2_000_000_000)
_RECORD = _INVITATION.record
_PERSON = replace(_INVITATION, name="ana", role="researcher")


class _Bytes(io.BytesIO):
    def exactly(self, count: int) -> bytes:
        data = self.read(count)
        if len(data) < count:
            msg = "the other side closed the connection; try again"
            raise UnreachableError(msg)
        return data

    @override
    def __repr__(self) -> str:
        return f"{len(self.getvalue())} bytes"


def joining_parsers() -> Iterator[Entry]:
    """Yield name, parser and seeds of each."""
    authority = ec.generate_private_key(ec.SECP256R1())
    request = write_request(JoinRequest("north", "a request", "cd" * 32, "a key"), _INVITATION)
    welcome = write_welcome("north", "a certificate", b"a roster", authority, b"a certificate")

    def signed_request(payload: bytes, invitation: Invitation = _INVITATION) -> object:
        signature = sign(invitation.key, "request", payload).hex().encode()
        data = b"cloister-request-3 " + invitation.number.encode() + b" " + signature + b"\n" + payload
        return open_request(data, invitation.record)

    def signed_welcome(payload: bytes) -> object:
        document = SignedDocument.make(authority, "welcome", payload).to_bytes()
        return open_welcome(document, authority.public_key()).roster_file

    both = [_INVITATION, _PERSON]
    tokens = [invitation.to_text().encode() for invitation in both]
    yield "invitation", lambda data: read_invitation(data.decode("latin-1")), tokens
    yield "invitation, right check", _checked, [_raw(invitation) for invitation in both]
    yield "invitation's record", lambda data: read_record(data, "here"), [one.record.to_bytes() for one in both]
    yield "number of a request", number_of, [request]
    yield "request", lambda data: open_request(data, _RECORD), [request]
    yield "request, rightly signed", signed_request, [request.partition(b"\n")[2]]
    asked = write_request(PersonRequest("ana", "cd" * 32), _PERSON)
    yield "person's request, rightly signed", lambda data: signed_request(data, _PERSON), [asked.partition(b"\n")[2]]
    yield "authority in a welcome", authority_in, [welcome]
    yield (
        "welcome",
        signed_welcome,
        [
            SignedDocument.open(authority_in(one)[1], "welcome", authority.public_key()).payload
            for one in (welcome, write_welcome("ana", None, b"a roster", authority, b"a certificate"))
        ],
    )
    issuer = Authority.create("lungs")
    certificate = issuer.issue_server("localhost", authority.public_key()).public_bytes(Encoding.DER)
    challenge = Challenge(bytes(56), 1.0, 3, certificate, bytes(70))
    answer = SignIn("north", bytes(56), 1.0, 3)
    yield "request for a challenge", read_challenge_request, [challenge_request(bytes(32), "north")]
    yield "challenge", read_challenge, [challenge.to_bytes()]
    yield "server's certificate", lambda data: open_server_certificate(data, issuer.certificate), [certificate]
    yield "answer to a challenge", read_sign_in, [answer.to_bytes()]
    yield "answer with a token", read_token_answer, [token_answer(bytes(32), 600)]
    yield (
        "token of a call",
        lambda data: token_in([("authorization", data.decode("latin-1"))]),
        [b"Bearer " + b"A" * 43],
    )
    yield "request for a roster", read_roster_request, [roster_request(3)]
    measurement = measurement_request(4, 8)
    yield "request for a measurement", lambda data: measurement_answer(data, 1.0), [measurement]
    yield "answer to a measurement", read_measurement, [measurement_answer(measurement, 1.0)]
    yield "greeting of a joining port", lambda data: read_greeting(_Bytes(data)), [greeting(b"a certificate")]
    yield "standing of an invitation", lambda data: read_standing(_Bytes(data)), [Standing(State.OPEN).to_bytes()]
    yield "request at a joining port", lambda data: read_request(_Bytes(data)), [request_bytes(request)]
    yield ("answer of a joining port", lambda data: read_answer(_Bytes(data)),
           [Answer(Outcome.WELCOME, welcome).to_bytes(), Answer(Outcome.REFUSED, b"no").to_bytes()])  # fmt: skip


def _raw(invitation: Invitation) -> bytes:
    """What a token encodes, without its check."""

    text = invitation.to_text().partition(".")[2]
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]


def _checked(data: bytes) -> object:
    """Read a token whose check is right."""

    return read_invitation(
        "cloister-invitation-3." + urlsafe_b64encode(data + sha256(data).digest()[:4]).decode().rstrip("=")
    )
