"""A server takes a newer roster while it runs: who joined is served, who left is cut."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import grpc
import pytest

from client.exchange import Exchange
from client.joining import begin, finish
from privacy.errors import AuthenticityError
from privacy.storage import read_file, write_atomically
from server.coordinator import Coordinator
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.roster_watch import NewRosters, RosterWatch
from server.settings import read_consortium
from simulations.engine.federation import Federation
from strategies.key_turns import KeyTurns
from tests.federations import await_condition, tls_of
from tests.server.callers import LIMIT

SECONDS = 5.0  # in which a change must have taken effect


class Watched:
    """A hub whose roster is watched."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.place = federation, read_consortium(federation.server)
        self.coordinator = Coordinator(federation.folder / "coordinator")
        self.roster_file = read_file(federation.server / "roster")
        self.roster = self.place.roster()
        self.mailboxes = Mailboxes({member.node_id for member in self.roster.members})
        self.hub = Hub(self.roster, self.mailboxes, LIMIT, self.roster_file)
        self.address = f"localhost:{self.hub.start('localhost:0', self.place.tls)}"
        self.rosters = NewRosters(self.hub, self.roster, KeyTurns())
        self.watch = RosterWatch(self.place, self.rosters.take, self.roster.version)
        self.watch.start()

    def exchange(self, site: str) -> Exchange:
        return Exchange(self.address, tls_of(self.federation, site))

    def online(self, site: str) -> bool:
        return self.roster.member(site).node_id in self.mailboxes.online(0.0)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    server = Watched(Federation.create(tmp_path, ("north", "south", "east")))
    try:
        yield server
    finally:
        server.watch.stop()
        server.hub.stop(grace=0)


def test_a_site_that_was_removed_is_cut_within_seconds_also_while_it_waits(watched: Watched) -> None:
    refusals = []

    def wait() -> None:
        with watched.exchange("north") as exchange, pytest.raises(AuthenticityError) as raised:
            exchange.pull(60.0)
        refusals.append(str(raised.value))

    waiting = Thread(target=wait)
    waiting.start()
    await_condition(lambda: watched.online("north"))
    start = time.monotonic()
    watched.coordinator.remove("north")
    waiting.join(SECONDS)
    assert time.monotonic() - start < SECONDS
    assert "not a member of the roster" in refusals[0]
    with watched.exchange("north") as exchange, pytest.raises(AuthenticityError, match="not a member"):
        exchange.roster()
    with watched.exchange("south") as exchange:
        assert exchange.pull(0.0) is None


def test_a_site_that_joins_is_served_without_a_restart(watched: Watched) -> None:
    west = Federation(watched.federation.folder, (*watched.federation.sites, "west"))
    request = begin(west.paths["west"], watched.coordinator.invite("west"))
    finish(west.paths["west"], watched.coordinator.approve([request])[1][0].welcome)

    def served() -> bool:
        with Exchange(watched.address, tls_of(west, "west")) as exchange:
            try:
                return exchange.pull(0.0) is None
            except AuthenticityError:
                return False

    await_condition(served, SECONDS)
    with watched.exchange("north") as exchange:
        assert exchange.roster() == watched.roster_file  # of the round that is going on
        newer = watched.rosters.after(1)
        assert newer is not None
        assert newer.version == 2
        assert watched.rosters.after(2) is None
        assert exchange.roster(1) == read_file(watched.federation.server / "roster")
        assert exchange.roster(2) is None


def test_an_older_or_damaged_roster_changes_nothing(watched: Watched) -> None:
    watched.coordinator.remove("north")
    await_condition(lambda: watched.watch.version == 2, SECONDS)
    watched.watch.stop()  # now it looks when it is told to
    for data in (watched.roster_file, b"nothing"):
        write_atomically(watched.federation.server / "roster", data)
        watched.watch.look()
        with watched.exchange("north") as exchange, pytest.raises(AuthenticityError, match="not a member"):
            exchange.pull(0.0)


def test_the_roster_is_only_for_members(watched: Watched) -> None:
    with watched.exchange("north") as exchange:
        assert exchange.roster() == watched.roster_file
    credentials = grpc.ssl_channel_credentials(tls_of(watched.federation, "north").read()[0])
    with grpc.secure_channel(watched.address, credentials) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=1.0)
