"""Frame and split bodies: the length of a head, the head, then the byte strings that it announces, without copies."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    Bytes = bytes | bytearray

_LENGTH = struct.Struct(">I")
_LARGEST_HEAD = 4 << 20  # bytes: parsed as a protobuf, it may take seventy times as much memory


class Cutter:
    """Cuts the bytes that follow a parcel into the arrays that it announces."""

    def __init__(self, data: memoryview) -> None:
        self._left = data

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes.

        Raises:
            ValueError: if there are fewer.
        """
        if size > len(self._left):
            msg = "it announces longer arrays than follow"
            raise ValueError(msg)
        part, self._left = bytes(self._left[:size]), self._left[size:]
        return part

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            ValueError: if bytes are left.
        """
        if self._left:
            msg = "it is longer than it announces"
            raise ValueError(msg)


def framed(head: bytes, data: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the parts of a body."""
    return _LENGTH.pack(len(head)), head, *data


def split(data: Bytes) -> tuple[bytes, Cutter]:
    """Return a body's head, and a cutter for the rest.

    Raises:
        ValueError: if the body is too short for its head, or the head is too long.
    """
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        msg = "it is too short"
        raise ValueError(msg)
    end = _LENGTH.size + _LENGTH.unpack_from(view)[0]
    if end > min(len(view), _LARGEST_HEAD):
        msg = "it was cut short, or its parcel exceeds the size limit"
        raise ValueError(msg)
    return bytes(view[_LENGTH.size : end]), Cutter(view[end:])
