"""Send messages in chunks of at most 1 MiB; the length is announced first, and never exceeded in memory."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from privacy.errors import MalformedError
from privacy.run.clocks import LATEST
from transport import cloister_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PROTOCOL = 1
FRAME_BYTES = 1 << 20


_ROSTER_REQUEST = struct.Struct(">IQ")


def roster_request(version: int) -> bytes:
    """Return the request for a roster newer than this version."""
    return _ROSTER_REQUEST.pack(PROTOCOL, version)


def read_roster_request(data: bytes) -> int:
    """Return the version of the roster that an agent has.

    Raises:
        MalformedError: if it is no such request, or of another protocol.
    """
    if len(data) != _ROSTER_REQUEST.size or _ROSTER_REQUEST.unpack(data)[0] != PROTOCOL:
        msg = f"this is no request for a roster under protocol {PROTOCOL}; install the server's version"
        raise MalformedError(msg)
    return int(_ROSTER_REQUEST.unpack(data)[1])


_MEASUREMENT = struct.Struct(">II")
_CLOCK = struct.Struct(">d")


def measurement_request(send: int, receive: int) -> bytes:
    """Return a request for the server's time, with `send` random bytes, for an answer with `receive` of them."""
    return _MEASUREMENT.pack(PROTOCOL, receive) + os.urandom(send)


def measurement_answer(request: bytes, clock: float) -> bytes:
    """Return the answer to it: the server's clock, in seconds since 1970, and as many random bytes as are asked for.

    Raises:
        MalformedError: if it is no such request, or asks for more than a frame.
    """
    protocol, count = _MEASUREMENT.unpack_from(request) if len(request) >= _MEASUREMENT.size else (0, 0)
    if protocol != PROTOCOL or count > FRAME_BYTES:
        msg = f"this is no measurement under protocol {PROTOCOL}; install the server's version"
        raise MalformedError(msg)
    return _CLOCK.pack(clock) + os.urandom(count)


def read_measurement(answer: bytes) -> float:
    """Return the server's clock, in seconds since 1970.

    Raises:
        MalformedError: if the answer has none.
    """
    clock = float(_CLOCK.unpack_from(answer)[0]) if len(answer) >= _CLOCK.size else -1.0
    if not 0 <= clock <= LATEST:
        msg = "the server's answer to a measurement has no time"
        raise MalformedError(msg)
    return clock


def to_frames(parts: Sequence[bytes], reply_to: str = "") -> Iterator[pb.Chunk]:
    """Cut the parts of a message into chunks; the first announces the whole length."""
    frames = _cut(parts)
    opening = pb.Opening(protocol=PROTOCOL, total_bytes=sum(map(len, parts)), reply_to=reply_to)
    yield pb.Chunk(opening=opening, data=next(frames, b""))
    for frame in frames:
        yield pb.Chunk(data=frame)


def _cut(parts: Sequence[bytes]) -> Iterator[bytes]:
    """Join short parts and cut long ones."""
    held = b""
    for part in parts:
        if held and len(held) + len(part) > FRAME_BYTES:
            yield held
            held = b""
        whole = len(part) // FRAME_BYTES * FRAME_BYTES if len(part) > FRAME_BYTES else 0
        for start in range(0, whole, FRAME_BYTES):
            yield part[start : start + FRAME_BYTES]
        held += part[whole:]
    if held:
        yield held


class Assembly:
    """Reassembles chunks; never holds more than was announced and allowed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._total: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the whole message is there."""
        return len(self._data) == self._total

    def add(self, chunk: pb.Chunk) -> None:
        """Take the next chunk.

        Raises:
            MalformedError: if the protocol differs, the announced length is over the limit, or the chunks exceed it.
        """
        if self._total is None:
            self._total = self._check(chunk.opening)
        if len(self._data) + len(chunk.data) > self._total:
            msg = f"a message is longer than the {self._total:,} bytes that it announced; it was dropped"
            raise MalformedError(msg)
        self._data += chunk.data

    def _check(self, opening: pb.Opening) -> int:
        if opening.protocol != PROTOCOL:
            msg = f"protocol {opening.protocol} is not supported, only {PROTOCOL}; install the same version everywhere"
            raise MalformedError(msg)
        if opening.total_bytes > self._limit:
            msg = f"a message of {opening.total_bytes:,} bytes exceeds the limit of {self._limit:,}; it was not read"
            raise MalformedError(msg)
        return opening.total_bytes

    def finish(self) -> bytearray | None:
        """Return the whole message; None if there was none.

        Raises:
            MalformedError: if it was cut short.
        """
        if self._total is None:
            return None
        if not self.complete:
            msg = f"a message was cut short: {len(self._data):,} of {self._total:,} bytes arrived"
            raise MalformedError(msg)
        return self._data


def assemble(chunks: Iterable[pb.Chunk], limit: int) -> bytearray | None:
    """Reassemble the next message of a stream; None if the stream ended. See `Assembly` for the errors."""
    assembly = Assembly(limit)
    for chunk in chunks:
        assembly.add(chunk)
        if assembly.complete:
            break
    return assembly.finish()
