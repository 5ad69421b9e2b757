"""Connections of HTTP that can take up little: few at once, few of one address, each with a deadline for its requests.

They are counted when they are accepted, before TLS: each takes one of the files that the whole process may open, and
whoever only connects takes one, too.
"""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn.protocols.http.h11_impl import RequestResponseCycle

_LARGE = 64 << 10  # bytes that do not wait for more
HEAD_SECONDS = 10.0
"""From TLS, or from the last answer, to the end of a request's head; also for a body that nobody reads any more."""


class FewConnections(socket.socket):
    """A listening socket that closes what it accepts beyond its limits. One thread may accept and close."""

    def __init__(
        self, listening: socket.socket, at_once: int, from_one: int, network_of: Callable[[str], str] = str
    ) -> None:
        """Take the place of a socket that listens.

        Args:
            listening: is closed by this, and not used any more.
            at_once: how many connections are open at a time.
            from_one: how many of one network.
            network_of: says which network an address belongs to.
        """
        super().__init__(listening.family, listening.type, listening.proto, listening.detach())
        self._at_once, self._from_one, self._network_of = at_once, from_one, network_of
        self._open = Counter[str]()

    @override
    def accept(self) -> tuple[socket.socket, Any]:
        """Accept the next connection.

        Raises:
            BlockingIOError: if none waits, or it is beyond the limits.
        """
        connection, address = super().accept()
        network = self._network_of(address[0])
        if self._open.total() >= self._at_once or self._open[network] >= self._from_one:
            connection.close()
            raise BlockingIOError  # for the event loop: nothing now, and it looks again
        self._open[network] += 1
        return _Counted(connection, self._open, network), address


class _Counted(socket.socket):
    """A connection that counts until it is closed."""

    def __init__(self, accepted: socket.socket, counts: Counter[str], network: str) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._counts: Counter[str] | None = counts
        self._network = network

    @override
    def close(self) -> None:
        super().close()
        counts, self._counts = self._counts, None
        if counts is not None:
            counts[self._network] -= 1
            if not counts[self._network]:
                del counts[self._network]


class _Together:
    """A transport that sends at once what is written in a turn of the event loop: the head and body of an answer.

    Each record of TLS and each call of the system that it saves leaves time to the threads of rounds.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        """Send data, at the latest when the loop turns."""
        if not self._waiting:
            self._loop.call_soon(self._send)
        self._waiting += data
        if len(self._waiting) > _LARGE:
            self._send()

    def close(self) -> None:
        """Send what waits, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._waiting:
            waiting, self._waiting = bytes(self._waiting), bytearray()
            self._transport.write(waiting)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a transport has
        return getattr(self._transport, name)


class PunctualConnection(H11Protocol):
    """A connection with a deadline for each request's head, and for what is left of a body once it was answered."""

    _deadline: asyncio.TimerHandle | None = None

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Together(transport, self.loop)))
        self._await_head()

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_asked:
            self._forget()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_asked and not self.transport.is_closing():
            self._await_head()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    @property
    def _is_asked(self) -> bool:
        """Whether a request waits for its answer."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        return cycle is not None and not cycle.response_complete

    def _await_head(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
