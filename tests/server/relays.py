"""Relays between agents and a server, which count what passes, and stop where a test says."""

import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress

_PIECE = 1 << 16
_POLL_SECONDS = 0.02


class Relay:
    """Forwards connections to a server on this machine, once it is up. What an agent sends is counted."""

    def __init__(self, server: int) -> None:
        self._server, self._lock = server, threading.Lock()
        self._listener = socket.create_server(("localhost", 0))
        self.port: int = self._listener.getsockname()[1]
        self.sent = 0  # bytes of the agent
        self.record = False
        self.seen = bytearray()  # what passed in both directions, if it is recorded
        self.most: int | None = None  # of them, that are let through
        self.full = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                agent, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(agent,), daemon=True).start()

    def _connect(self, agent: socket.socket) -> None:
        with closing(agent), suppress(OSError), self._reached() as server:
            back = threading.Thread(target=self._forward, args=(server, agent, lambda _: True), daemon=True)
            back.start()
            self._forward(agent, server, self._passes)
            back.join()

    def _reached(self) -> socket.socket:
        while True:
            with suppress(ConnectionRefusedError):
                return socket.create_connection(("localhost", self._server))
            if self._closed.wait(_POLL_SECONDS):
                raise ConnectionAbortedError

    def _forward(self, source: socket.socket, target: socket.socket, passes: Callable[[int], bool]) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if not passes(len(piece)):
                    self._closed.wait()
                    break
                if self.record:
                    self.seen += piece
                target.sendall(piece)
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _passes(self, count: int) -> bool:
        with self._lock:
            if self.most is not None and self.sent + count > self.most:
                self.full.set()
                return False
            self.sent += count
            return True
