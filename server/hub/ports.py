"""gRPC servers in a thread of their own, each on one port."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from privacy.errors import UnreachableError
from server.hub.crowds import FROM_ONE, Crowds
from server.hub.listening import check_free, numbered
from transport.address import read_address
from transport.channel import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transport.address import Address

    Context = grpc.aio.ServicerContext[Any, Any]

_START_SECONDS = 10.0
_MAX_STREAMS = 16  # open calls per connection
_EVERY: tuple[tuple[str, int], ...] = (
    ("grpc.max_allowed_incoming_connections", 4096),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
)

STRANGERS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.lookahead_bytes", 64 << 10),  # that gRPC takes of a stream before anybody asks for them
    ("grpc.max_connection_idle_ms", 120_000),
)
"""Options of a port at which anybody gets through TLS."""


@dataclass(frozen=True)
class Port:
    """Where to listen, and what for."""

    listen: str
    credentials: grpc.ServerCredentials
    services: Sequence[grpc.GenericRpcHandler]
    options: tuple[tuple[str, int], ...] = ()


async def refuse(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    """End a call. gRPC's types do not say that `abort` always raises."""
    await context.abort(code, message)
    raise AssertionError


class Ports:
    """Serves ports in one thread."""

    def __init__(self, name: str, from_one: int = FROM_ONE) -> None:
        """Take the thread's name, and how many connections one address may have at all of its ports together."""
        self._from_one, self._crowds = from_one, list[Crowds]()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._servers = list[grpc.aio.Server]()

    def start(self, *ports: Port) -> list[int]:
        """Listen on all of them, and return their numbers.

        Raises:
            MalformedError: if an address is malformed.
            UnreachableError: if an address cannot be listened on; then no port stays open.
        """
        try:
            places = [read_address(port.listen, listening=True) for port in ports]
            for place in places:
                check_free(place)
            self._thread.start()
            numbers = [self._open(port, numbered(place)) for port, place in zip(ports, places, strict=True)]
        except BaseException:
            self.stop()
            raise
        self._crowds.append(Crowds(numbers, self._from_one))
        self._crowds[-1].start()
        return numbers

    def _open(self, port: Port, place: Address) -> int:
        try:
            return asyncio.run_coroutine_threadsafe(self._start(port, str(place)), self.loop).result(_START_SECONDS)
        except TimeoutError as error:
            msg = f"cannot listen on {place}: the port did not open within {_START_SECONDS:g} s; try again"
            raise UnreachableError(msg) from error

    async def _start(self, port: Port, address: str) -> int:
        # Of an option that is given twice, the first counts.
        server = grpc.aio.server(options=(*port.options, *OPTIONS, *_EVERY))
        server.add_generic_rpc_handlers(tuple(port.services))
        try:
            number = server.add_secure_port(address, port.credentials)
        except RuntimeError as error:
            msg = f"cannot listen on {address}; gRPC gives no reason; choose another port in consortium.toml"
            raise UnreachableError(msg) from error
        await server.start()
        self._servers.append(server)
        return number

    def stop(self, grace: float = 2.0) -> None:
        """Let open calls finish, then close the ports. Safe to call more than once."""
        if self.loop.is_closed():
            return
        for crowds in self._crowds:
            crowds.stop()
        for future in [asyncio.run_coroutine_threadsafe(server.stop(grace), self.loop) for server in self._servers]:
            future.result(grace + _START_SECONDS)
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_START_SECONDS)
        if not self.loop.is_running():
            self.loop.close()
