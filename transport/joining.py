r"""The joining port's protocol: how a site or a person with an invitation asks a server to be let in.

Inside TLS 1.3, in which only the server has a certificate:

    server → site   "cloister-join-1\n" ‖ u16be length ‖ the authority's certificate, DER
    site → server   the invitation's proof, 32 bytes
    server → site   state, u8 ‖ the signing key that used the invitation, 32 bytes, or zeros
    site → server   u16be length ‖ request                     only if the state is OPEN
    server → site   answer, u8 ‖ u32be length ‖ its content    a welcome, nothing, or a sentence

A site connects twice. The first time it takes only the authority's certificate, and compares its SHA-256 with that in
the invitation. The second time it trusts this authority alone, so that nothing is sent to anyone else. The server
reads nothing but 32 bytes before it knows the caller. Every length is bounded, and a connection has one deadline.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

from privacy.errors import AuthenticityError, MalformedError, UnreachableError
from privacy.run.enrolment import LARGEST_CERTIFICATE, LARGEST_REQUEST

if TYPE_CHECKING:
    import socket
    from types import TracebackType
    from typing import Self

GREETING = b"cloister-join-1\n"
_ANY_GREETING = b"cloister-join-"
KEY_BYTES = 32
LARGEST_ANSWER = 64 << 20  # bytes; a welcome holds a roster
_STEP = 1 << 14  # bytes of one TLS record
LARGEST_SENTENCE = 500  # bytes of a refusal


class State(IntEnum):
    """What has become of the invitation whose proof came."""

    OPEN = 0
    UNKNOWN = 1
    EXPIRED = 2


class Outcome(IntEnum):
    """What has become of a request."""

    WELCOME = 0
    KEPT = 1  # until the coordinator approves it
    REFUSED = 2


S = TypeVar("S", State, Outcome)


@dataclass(frozen=True)
class Standing:
    """An invitation's state, and the signing key of the site that used it."""

    state: State
    used: bytes = bytes(KEY_BYTES)  # zeros: nobody yet

    def to_bytes(self) -> bytes:
        """Return the server's answer to a proof."""
        return bytes([self.state]) + self.used

    @property
    def used_by(self) -> str | None:
        """The signing key that used the invitation, in hex; None if nobody did."""
        return self.used.hex() if any(self.used) else None


@dataclass(frozen=True)
class Answer:
    """What a request got, and its content: a welcome, nothing, or why it was refused."""

    outcome: Outcome
    content: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the server's answer to a request."""
        return struct.pack(">BI", self.outcome, len(self.content)) + self.content


class Source(Protocol):
    """Where bytes come from."""

    def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            UnreachableError: if fewer come.
        """
        ...


def greeting(authority: bytes) -> bytes:
    """Return what a server sends first: the authority's certificate, DER."""
    return GREETING + struct.pack(">H", len(authority)) + authority


def read_greeting(source: Source) -> bytes:
    """Return the authority's certificate from a server's first bytes. It is not trusted yet.

    Raises:
        MalformedError: if another service answers.
        UnreachableError: if the connection breaks.
    """
    begins = source.exactly(len(GREETING))
    if begins.startswith(_ANY_GREETING) and begins != GREETING:
        msg = "another version of Cloister answers there; install the server's version"
        raise MalformedError(msg)
    if begins != GREETING:
        msg = "another service answers there, not a joining port; check address and port with the coordinator"
        raise MalformedError(msg)
    return source.exactly(_length(source, ">H", LARGEST_CERTIFICATE))


def read_standing(source: Source) -> Standing:
    """Read what the server answers to a proof.

    Raises:
        MalformedError: if it is no such answer.
        UnreachableError: if the connection breaks.
    """
    return Standing(_one_of(State, source), source.exactly(KEY_BYTES))


def request_bytes(request: bytes) -> bytes:
    """Return a request as it is sent."""
    return struct.pack(">H", len(request)) + request


def read_request(source: Source) -> bytes:
    """Read a request; nothing in it is checked yet.

    Raises:
        MalformedError: if it is too long.
        UnreachableError: if the connection breaks.
    """
    return source.exactly(_length(source, ">H", LARGEST_REQUEST))


def read_answer(source: Source) -> Answer:
    """Read what the server answers to a request.

    Raises:
        MalformedError: if it is no such answer.
        UnreachableError: if the connection breaks.
    """
    outcome = _one_of(Outcome, source)
    largest = {Outcome.WELCOME: LARGEST_ANSWER, Outcome.KEPT: 0, Outcome.REFUSED: LARGEST_SENTENCE}[outcome]
    return Answer(outcome, source.exactly(_length(source, ">I", largest)))


def _length(source: Source, form: str, largest: int) -> int:
    length: int = struct.unpack(form, source.exactly(struct.calcsize(form)))[0]
    if length > largest:
        msg = f"{length} bytes are announced where at most {largest} may come; use the same version of Cloister"
        raise MalformedError(msg)
    return length


def _one_of(kind: type[S], source: Source) -> S:
    number = source.exactly(1)[0]
    try:
        return kind(number)
    except ValueError as error:
        msg = f"{kind.__name__.lower()} {number} is unknown here; use the same version of Cloister at both ends"
        raise MalformedError(msg) from error


def open_standing(standing: Standing, site: str, place: str) -> str | None:
    """Return the signing key that used an invitation, in hex; None if nobody did.

    Raises:
        AuthenticityError: if the server at this place does not know the invitation, or it has expired.
    """
    if standing.state is State.EXPIRED:
        msg = f"the invitation of {site} has expired; ask the coordinator for a new one"
        raise AuthenticityError(msg)
    if standing.state is State.UNKNOWN:
        msg = (
            f"the server at {place} does not know this invitation of {site}: it was withdrawn, or the server lacks it; "
            "ask the coordinator for a new one, or to copy invitations/ to the server"
        )
        raise AuthenticityError(msg)
    return standing.used_by


class Line:
    """A connected socket with one deadline for everything that is read and sent."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._deadline = connection, time.monotonic() + seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._connection.close()

    def allow(self, seconds: float) -> None:
        """Set the deadline anew, so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def exactly(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            UnreachableError: if fewer come before the deadline.
        """
        parts, left = [], count
        while left:
            try:
                self._limit()
                part = self._connection.recv(min(left, 1 << 16))
            except OSError as error:
                msg = "the connection broke before everything had come; try again"
                raise UnreachableError(msg) from error
            if not part:
                msg = "the other side closed the connection; try again"
                raise UnreachableError(msg)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            UnreachableError: if the other side does not take them before the deadline.
        """
        try:
            for start in range(0, len(data), _STEP):  # a time limit holds for one write to TLS, not for all of them
                self._limit()
                self._connection.sendall(data[start : start + _STEP])
        except OSError as error:
            msg = "the connection broke before everything was sent; try again"
            raise UnreachableError(msg) from error

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
