"""A real HTTP proxy for tests: it opens tunnels (CONNECT) to servers on this machine, or refuses as a test says."""

import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from transport.pki import Authority, certificate_pem, key_pem

_PIECE = 1 << 16


class TunnelProxy:
    """Opens tunnels, each in threads of its own."""

    def __init__(
        self,
        routes: Mapping[str, int] | None = None,
        login: tuple[str, str] | None = None,
        refusal: str = "",
        host: str = "localhost",
    ) -> None:
        """Listen.

        Args:
            routes: by `host:port` as it is asked for, the port on this machine that is meant; others are dialled.
            login: the user and password that it wants.
            refusal: the status with which it refuses everything.
            host: where it listens.
        """
        self._routes, self.refusal = routes or {}, refusal
        self._wanted = b64encode(":".join(login).encode()).decode() if login else None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.place = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.asked = list[str]()  # the servers asked for
        self.passed = bytearray()  # all bytes that went through tunnels
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with closing(caller), suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += caller.recv(_PIECE)
            lines = head.decode().split("\r\n")
            server = lines[0].split()[1]
            self.asked.append(server)
            status = self._status(lines)
            caller.sendall(f"HTTP/1.1 {status}\r\nServer: test\r\n\r\n".encode())
            if not status.startswith("200"):
                return
            self._pass_on(server, caller)

    def _pass_on(self, server: str, caller: socket.socket) -> None:
        with closing(self._dial(server)) as target:
            threading.Thread(target=self._forward, args=(target, caller), daemon=True).start()
            self._forward(caller, target)

    def _status(self, lines: list[str]) -> str:
        if self.refusal:
            return self.refusal
        if self._wanted and not any(
            line.partition(":")[0].lower() == "proxy-authorization" and line.split()[-1] == self._wanted
            for line in lines
        ):
            return "407 Proxy Authentication Required"
        return "200 Connection established"

    def _dial(self, server: str) -> socket.socket:
        host, _, port = server.rpartition(":")
        here = self._routes.get(server)
        return socket.create_connection(("localhost", here) if here else (host.strip("[]"), int(port)))

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                self.passed += piece
                target.sendall(piece)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class InspectingProxy(TunnelProxy):
    """Ends TLS in its tunnels, as a hospital's web gateway does: it shows a certificate of its own authority's."""

    def __init__(
        self,
        folder: Path,
        name: str,
        host: str = "localhost",
        latest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> None:
        """Listen.

        Args:
            folder: where to put its certificate.
            name: of its organisation.
            host: the name of the servers that it shows certificates for.
            latest: the latest version of TLS that it speaks.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        file = folder / "gateway.pem"
        file.write_bytes(certificate_pem(Authority.create(name).issue_server(host, key.public_key())) + key_pem(key))
        self._inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inside.load_cert_chain(file)
        self._inside.maximum_version = latest
        self._outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._outside.check_hostname, self._outside.verify_mode = False, ssl.CERT_NONE
        super().__init__()

    @override
    def _pass_on(self, server: str, caller: socket.socket) -> None:
        with closing(self._inside.wrap_socket(caller, server_side=True)) as opened:
            super()._pass_on(server, opened)

    @override
    def _dial(self, server: str) -> socket.socket:
        return self._outside.wrap_socket(super()._dial(server))
