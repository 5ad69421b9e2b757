"""Ports for servers of tests: no two tests get the same one, and no connection that the system opens does."""

import os
import socket
from itertools import count

_FIRST, _EACH = (
    12_000,
    1_000,
)  # below the ports that the system gives to connections; how many each process of tests has
_NUMBERS = count()


def unused_port() -> int:
    """Return a port that nothing uses and that no other test is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in _NUMBERS:
        port = _FIRST + worker % 20 * _EACH + (os.getpid() + number) % _EACH
        try:
            socket.create_server(("localhost", port)).close()
        except OSError:
            continue
        return port
    raise AssertionError
