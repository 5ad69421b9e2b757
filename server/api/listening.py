"""The API's port: uvicorn in a thread of its own, with the consortium's TLS, and deadlines for whatever may be slow."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from asyncio import sslproto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from anyio.to_thread import current_default_thread_limiter
from typing_extensions import override

from privacy.errors import CloisterError, ConfigError, RunError
from privacy.failures import sentence
from server.api.app import make_app
from server.api.oidc import Provider
from server.api.problems import MEDIA_TYPE, Problem
from server.hub.listening import check_free, sockets
from transport.address import network_of, read_address
from transport.channel import joining_context
from transport.http_connections import FewConnections, PunctualConnection
from transport.pki import check_server_certificate

if TYPE_CHECKING:
    import ssl

    from server.api.runs import Runs
    from server.settings import ServerFolder
    from transport.channel import TlsFiles

log = logging.getLogger("cloister.api")

HANDSHAKE_SECONDS, IDLE_SECONDS = 5.0, 5
"""For TLS; for a connection without a request."""

GOODBYE_SECONDS = 1.0
"""For a client to end TLS, once the server has."""

AT_ONCE = 512
"""Connections, in TLS or not yet."""

LARGEST_HEAD = 16 << 10  # bytes
_READ = 16 << 10  # bytes that a connection of TLS keeps room for: a record
_THREADS = 16  # that wait for the store
_STOP_SECONDS = 3  # for requests under way when the server stops
_WAITING = 64  # connections that the system holds for us
_START_SECONDS = 20.0


class ApiPort:
    """Serves the API."""

    def __init__(self, place: ServerFolder, runs: Runs) -> None:
        """Listen, and serve until `stop`.

        Raises:
            ConfigError: if the settings have no `[api]`, or what `[api.oidc]` needs is not installed.
            KeyFileError: if the server's certificate cannot be used.
            UnreachableError: if the address cannot be listened on.
        """
        settings = place.settings.api
        if settings is None:
            msg = f"{place.folder / 'consortium.toml'}: there is no [api]; add it, with `listen`"
            raise ConfigError(msg)
        tls = _Tls(place.tls)
        address = read_address(settings.listen, listening=True)
        accounts = settings.oidc
        app, self._following = make_app(runs, place, Provider(accounts, place.folder) if accounts else None)
        check_free(address)
        self._sockets = [
            FewConnections(each, AT_ONCE, settings.connections_per_address, network_of)
            for each in sockets(address, _WAITING)
        ]
        self.port = int(self._sockets[0].getsockname()[1])
        config = uvicorn.Config(
            app, http=_Connection, ws="none", lifespan="off", interface="asgi3", log_config=None,
            log_level="critical", access_log=False, proxy_headers=False, server_header=False,
            timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=_STOP_SECONDS,
            h11_max_incomplete_event_size=LARGEST_HEAD,
        )  # fmt: skip
        config.load()
        config.ssl = tls.context
        self._server = uvicorn.Server(config)
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)
        self._thread.start()
        if not self._begun.wait(_START_SECONDS):
            msg = f"the API did not start at {address} within {_START_SECONDS:g} s; start the server again"
            raise RunError(msg)

    def stop(self) -> None:
        """End all streams, finish what is under way, and close the port."""
        self._following.stopping = self._server.should_exit = True
        self._thread.join()

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(self._run())
        except Exception as error:  # noqa: BLE001 - the thread has nobody else to tell
            log.error("the API has ended: %s", sentence(error))  # noqa: TRY400 - one sentence

    async def _run(self) -> None:
        current_default_thread_limiter().total_tokens = _THREADS
        asyncio.get_running_loop().call_soon(self._begun.set)
        await self._server.serve([*self._sockets])


def start(place: ServerFolder, runs: Runs) -> ApiPort:
    """Serve the API at `[api] listen`; return its port, which has to be stopped.

    Raises:
        CloisterError: as `ApiPort` does.
    """
    return ApiPort(place, runs)


class _Loop(asyncio.SelectorEventLoop):
    @override
    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """Listen; TLS has to be there soon, and gone soon, which uvicorn leaves at a minute and half of one."""
        sslproto.SSLProtocol.max_size = _READ  # 256 KiB otherwise, for whoever connects, and until they are collected
        options |= {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": GOODBYE_SECONDS}
        server: asyncio.Server = await super().create_server(*arguments, **options)
        return server


class _Tls:
    """The server's identity, which may be renewed while it runs."""

    def __init__(self, files: TlsFiles) -> None:
        self._files, self._changed = files, 0
        self.context = self._current = self._read()
        self.context.sni_callback = self._choose  # which is called for every connection

    def _read(self) -> ssl.SSLContext:
        changed = self._files.certificate.stat().st_mtime_ns
        context = joining_context(self._files)
        check_server_certificate(self._files.certificate, self._files.authority)
        context.set_alpn_protocols(["http/1.1"])
        self._changed = changed
        return context

    def _choose(self, connection: ssl.SSLObject, _: object, __: object) -> None:
        try:
            if self._files.certificate.stat().st_mtime_ns != self._changed:
                self._current = self._read()
        except (CloisterError, OSError) as error:
            log.warning("the API goes on with the certificate it has: %s", sentence(error))
        connection.context = self._current


class _Connection(PunctualConnection):
    """A connection that is refused as everything is."""

    @override
    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too long a head, as everything is refused."""
        status = HTTPStatus.BAD_REQUEST
        body = Problem(title=status.phrase, status=status, detail="this is not a request of HTTP/1.1; send one")
        data = json.dumps(body.model_dump()).encode()
        headers = [(b"content-type", MEDIA_TYPE.encode()), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=data),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
