"""Bad lines: relays between agents and a server that cut, delay, throttle, double, flip, or fall silent, as told.

A line carries TLS, so that whatever changes its bytes ends the connection, at once or when the other end notices.
"""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from threading import Event, Lock

from typing_extensions import override

from tests.server.relays import Relay

KINDS = ("cut", "double", "flip", "half-open")
_PIECE = 1 << 12
_STEP = 0.05  # seconds


@dataclass
class Fault:
    """Something that happens to a line once so many bytes more have passed, in either direction."""

    kind: str
    after: int
    happened: Event = field(default_factory=Event)


class Line(Relay):
    """A relay whose line is as bad as a case wants."""

    def __init__(self, server: int) -> None:
        self.delay = 0.0  # seconds, of every piece
        self.rate = float("inf")  # bytes per second that an agent may send
        self.passed = 0  # bytes, in both directions
        self._fault: Fault | None = None
        self._turn = Lock()
        super().__init__(server)

    def will(self, kind: str, after: int) -> Fault:
        """Have something happen to the line once so many bytes more have passed."""
        with self._turn:
            self._fault = Fault(kind, self.passed + after)
            return self._fault

    @override
    def _connect(self, agent: socket.socket) -> None:
        silent = Event()
        with closing(agent), suppress(OSError), self._reached() as server:
            back = threading.Thread(target=self._carry, args=(server, agent, silent), daemon=True)
            back.start()
            self._carry(agent, server, silent, up=True)
            back.join()

    def _carry(self, source: socket.socket, target: socket.socket, silent: Event, *, up: bool = False) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                self._wait(len(piece), up=up)
                for part in self._weathered(piece, silent):
                    target.sendall(part)
        if silent.is_set():  # a line that is half open tells neither end that the other one has gone
            self._closed.wait()
        for side in (source, target):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _wait(self, size: int, *, up: bool) -> None:
        """Wait as long as a piece is under way; if the line gets faster meanwhile, no longer."""
        if self.delay:
            self._closed.wait(self.delay)
        arrived = 0.0
        while up and self.rate < float("inf") and arrived < size and not self._closed.wait(_STEP):
            arrived += self.rate * _STEP

    def _weathered(self, piece: bytes, silent: Event) -> tuple[bytes, ...]:
        """Return what arrives of a piece.

        Raises:
            ConnectionResetError: if the line is cut here.
        """
        with self._turn:
            self.passed += len(piece)
            fault = self._fault
            if fault and fault.after <= self.passed:
                self._fault = None
                fault.happened.set()
            else:
                fault = None
        if fault and fault.kind == "half-open":
            silent.set()
        if silent.is_set():
            return ()
        if fault and fault.kind == "cut":
            raise ConnectionResetError
        if fault and fault.kind == "double":
            return piece, piece
        if fault and fault.kind == "flip":
            return (piece[:-1] + bytes([piece[-1] ^ 1]),)
        return (piece,)


def until(holds: Callable[[], bool], seconds: float) -> float | None:
    """Wait until something holds; return after how many seconds it did, or None if it did not in time."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() > start + seconds:
            return None
        Event().wait(0.02)
    return time.monotonic() - start
