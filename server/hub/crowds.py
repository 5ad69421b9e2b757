"""How many connections one address has at gRPC's ports: gRPC accepts them itself, and counts no addresses.

So a thread looks at this process's own sockets now and then, and shuts those down, for gRPC to close, with which an
address went beyond its limit; the ones that it had before stay. How many may come between two looks is limited by what
a port takes in all.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from transport.address import network_of

if TYPE_CHECKING:
    from collections.abc import Collection

FROM_ONE = 1024
"""Connections of one address: of all sites behind one router, or of a proxy, which may open one for each call."""

_SECONDS = 0.5  # between two looks
_SOCKETS = "/proc/self/fd"


class Crowds:
    """Limits the connections of each address at some ports of this process, in a thread of its own."""

    def __init__(self, ports: Collection[int], from_one: int) -> None:
        """Take the ports' numbers, and how many connections one address may have at all of these together."""
        self._ports, self._from_one = frozenset(ports), from_one
        self._known = dict[str, str]()  # the networks of connections, by socket, in the order in which they came
        self._others = set[str]()  # what else this process has open
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="crowds", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_SECONDS)

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            self.look()

    def look(self) -> None:
        """Shut down the connections that are beyond the limit."""
        now = _open_sockets()
        self._known = {name: network for name, network in self._known.items() if name in now}
        self._others &= now.keys()
        count = Counter(self._known.values())
        for name, descriptor in now.items():
            if name in self._known or name in self._others:
                continue
            with suppress(OSError), _duplicate(descriptor) as connection:  # it may be closed by now
                network = self._network(connection)
                if network is None:
                    self._others.add(name)
                elif count[network] < self._from_one:
                    count[network] += 1
                    self._known[name] = network
                else:
                    connection.shutdown(socket.SHUT_RDWR)

    def _network(self, connection: socket.socket) -> str | None:
        """Return the network from which a connection to one of the ports came; None if it is no such connection."""
        if connection.family not in {socket.AF_INET, socket.AF_INET6} or connection.getsockname()[1] not in self._ports:
            return None
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return None
        return network_of(connection.getpeername()[0])


def _duplicate(descriptor: int) -> socket.socket:
    own = os.dup(descriptor)
    try:
        return socket.socket(fileno=own)
    except OSError:  # by now it is something else
        os.close(own)
        raise


def _open_sockets() -> dict[str, int]:
    """Return the descriptors of this process's sockets, by their names in the system."""
    found = dict[str, int]()
    try:
        entries = os.listdir(_SOCKETS)  # noqa: PTH208 - there may be thousands, and paths take several times as long
    except OSError:  # not Linux
        return found
    for entry in entries:
        with suppress(OSError):
            name = os.readlink(f"{_SOCKETS}/{entry}")  # noqa: PTH115
            if name.startswith("socket:"):
                found[name] = int(entry)
    return found
