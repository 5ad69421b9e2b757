"""How many connections to the joining port are taken: few at once, and few from one address in a minute.

Whoever has no invitation can only connect, so that is what is limited. Addresses of one IPv6 network (/64) count as
one.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from threading import Lock

from transport.address import network_of

AT_ONCE, AT_ONCE_FROM_ONE = 16, 4  # connections
A_MINUTE = 60  # connections from one address
_SECONDS = 60.0
_REMEMBERED = 4096  # addresses


class Limits:
    """Counts connections. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: dict[str, int] = {}
        self._recent: OrderedDict[str, deque[float]] = OrderedDict()

    def admit(self, address: str) -> bool:
        """Return whether a connection from this address may be served now; if so, `leave` must follow."""
        network, now = network_of(address), time.monotonic()
        with self._lock:
            recent = self._recent.setdefault(network, deque())
            self._recent.move_to_end(network)
            while len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)
            while recent and recent[0] < now - _SECONDS:
                recent.popleft()
            if (
                sum(self._open.values()) >= AT_ONCE
                or self._open.get(network, 0) >= AT_ONCE_FROM_ONE
                or len(recent) >= A_MINUTE
            ):
                return False
            recent.append(now)
            self._open[network] = self._open.get(network, 0) + 1
            return True

    def leave(self, address: str) -> None:
        """Note that a connection has ended."""
        network = network_of(address)
        with self._lock:
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]
