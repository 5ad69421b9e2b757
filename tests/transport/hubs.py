"""A hub on this machine, which agents of a federation reach."""

from collections.abc import Iterator
from contextlib import contextmanager

from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation


@contextmanager
def listening(federation: Federation) -> Iterator[int]:
    """Run a hub; gives its port."""
    place = read_consortium(federation.server)
    roster = place.roster()
    hub = Hub(roster, Mailboxes({member.node_id for member in roster.members}), 1 << 20)
    try:
        yield hub.start("localhost:0", place.tls)
    finally:
        hub.stop(grace=0)
