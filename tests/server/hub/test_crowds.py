"""No address takes up the ports for sites: beyond its limit, what it opens is closed, and what it had stays open."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import await_condition, tls_of
from tests.server.callers import LIMIT, LONG, Caller

FEW = 3
Dial = Callable[[str], socket.socket]


@pytest.fixture
def hub(federation: Federation) -> Iterator[tuple[str, Dial]]:
    """The address of a hub that takes few connections of one address, and what connects from an address."""
    place = read_consortium(federation.server)
    roster = place.roster()
    hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), LIMIT, from_one=FEW)
    port = hub.start("localhost:0", place.tls)
    with ExitStack() as lines:

        def dial(address: str) -> socket.socket:
            there = ("127.0.0.1", port)
            return lines.enter_context(socket.create_connection(there, LONG, source_address=(address, 0)))

        yield f"localhost:{port}", dial
    hub.stop(grace=0)


def is_closed(line: socket.socket) -> bool:
    line.settimeout(0.0)
    try:
        return line.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_the_newest_connections_of_an_address_beyond_its_limit_are_closed(
    hub: tuple[str, Dial], federation: Federation
) -> None:
    address, dial = hub
    authority, key, certificate = tls_of(federation, "north").read()
    north = Caller(address, grpc.ssl_channel_credentials(authority, key, certificate))
    assert north.pull() is None
    first = [dial("127.0.0.2") for _ in range(FEW - 1)]
    assert north.pull(wait=1.2) is None  # they are known by now
    later = [dial("127.0.0.2") for _ in range(4)]
    await_condition(lambda: sum(map(is_closed, later)) == 3, LONG)
    others = [dial("127.0.0.3") for _ in range(FEW)]
    assert north.pull(wait=1.2) is None
    assert not any(map(is_closed, [*first, *others]))
    assert sum(map(is_closed, later)) == 3
    for line in first:
        line.close()
    assert north.pull(wait=1.2) is None
    again = dial("127.0.0.2")
    assert north.pull(wait=1.2) is None
    assert not is_closed(again)
