r"""Read server-sent events (HTML Living Standard, section 9.2.6) as their bytes come in.

>>> list(EventStream().feed(b"id: 7\r\nevent: end\r\ndata: {}\r\n\r\n: a comment\r\n\r\n"))
[ServerSent(number='7', kind='end', data='{}')]
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 1 << 20  # bytes of one event
_END = re.compile(rb"\r\n|\n|\r(?=[^\n])")  # a line's end; a \r at the very end may be half of one


class ServerSent(NamedTuple):
    """One event: its id, its type, and its data."""

    number: str
    kind: str
    data: str


class EventStream:
    """Splits a stream into events."""

    def __init__(self) -> None:
        self._rest, self._size = b"", 0
        self._number, self._kind = "", ""
        self._data = list[str]()

    def feed(self, part: bytes) -> Iterator[ServerSent]:
        """Take the next bytes, and return the events that they complete.

        Raises:
            MalformedError: if an event is too large.
        """
        *lines, self._rest = _END.split(self._rest + part)
        self._check(len(self._rest))
        for line in lines:
            self._size += len(line)
            self._check(0)
            if line:
                self._take(line.decode("utf-8", "replace"))
                continue
            if self._data:
                yield ServerSent(self._number, self._kind or "message", "\n".join(self._data))
            self._kind, self._data, self._size = "", [], 0

    def _check(self, further: int) -> None:
        if self._size + further > LARGEST:
            msg = f"the server sends an event of more than {LARGEST >> 20} MiB; install the same version everywhere"
            raise MalformedError(msg)

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._kind = value
        elif field == "id" and "\0" not in value:
            self._number = value
