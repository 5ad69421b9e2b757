"""Serve `/livez`, `/readyz` and `/metrics` over HTTP, from a thread of its own.

    /livez     200 as long as the process works; otherwise whoever watches it should start it again
    /readyz    200 while it does what it is there for; otherwise 503, and a line for each reason
    /metrics   Prometheus' text format, or OpenMetrics for who asks for it

It has no TLS and asks nobody who they are: what it says is for everybody who can reach the address. Requests have no
parameters, and a few connections at a time are enough for a monitor, so nobody can make the process work for them.
"""

from __future__ import annotations

import socket
from threading import Thread
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from privacy.errors import UnreachableError
from privacy.failures import sentence
from transport.address import read_address
from transport.http_connections import FewConnections, PunctualConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request

    Troubles = Callable[[], Sequence[str]]

_CONNECTIONS, _FROM_ONE = 64, 16  # at a time, and of one address; more are closed
_SECONDS = 5.0  # that a connection may be idle, and that the end may take
_FAMILIES = {True: socket.AF_INET6, False: socket.AF_INET}


class Listener:
    """The open port."""

    def __init__(self, address: str, app: Starlette) -> None:
        """Listen.

        Raises:
            UnreachableError: if the address cannot be listened on.
        """
        place = read_address(address, listening=True)
        try:
            listening = socket.create_server((place.host, place.port), family=_FAMILIES[":" in place.host])
        except OSError as error:
            msg = f"cannot listen on {place}: {sentence(error)} (`listen` in [operations])"
            raise UnreachableError(msg) from error
        self._socket = FewConnections(listening, _CONNECTIONS, _FROM_ONE)
        self.port = int(self._socket.getsockname()[1])
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                http=PunctualConnection,
                loop="asyncio",
                server_header=False,
                timeout_keep_alive=int(_SECONDS),
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="operations", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port. Safe to call more than once."""
        self._server.should_exit = True
        self._thread.join(_SECONDS)
        self._socket.close()


def serve(address: str, alive: Troubles, ready: Troubles, registry: CollectorRegistry) -> Listener:
    """Open the port.

    Args:
        address: host:port; port 0 means any free port.
        alive: returns why the process should be started again; nothing if it works.
        ready: returns why it cannot do what it is there for; nothing if it can.
        registry: of the metrics.

    Raises:
        UnreachableError: if the address cannot be listened on.
    """

    def metrics(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=media_type)

    routes = [
        Route("/livez", _answering(alive), methods=["GET"]),
        Route("/readyz", _answering(ready), methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
    ]
    return Listener(address, Starlette(routes=routes))


def _answering(troubles: Troubles) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        del request
        found = troubles()
        return PlainTextResponse("\n".join([*found, ""]) if found else "ok\n", status_code=503 if found else 200)

    return answer
