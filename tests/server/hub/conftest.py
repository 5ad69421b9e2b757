"""A hub on a free port, and two sites that call it."""

from collections.abc import Iterator

import grpc
import pytest

from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import tls_of
from tests.server.callers import LIMIT, SITES, Caller, Server


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("federation"), SITES)


@pytest.fixture
def server(federation: Federation) -> Iterator[Server]:
    place = read_consortium(federation.server)
    roster = place.roster()
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    hub = Hub(roster, mailboxes, LIMIT)
    try:
        yield Server(federation, place, mailboxes, hub, f"localhost:{hub.start('localhost:0', place.tls)}")
    finally:
        hub.stop(grace=0)


@pytest.fixture
def north(server: Server) -> Caller:
    authority, key, certificate = tls_of(server.federation, "north").read()
    return Caller(server.address, grpc.ssl_channel_credentials(authority, key, certificate))


@pytest.fixture
def south(server: Server) -> Caller:
    authority, key, certificate = tls_of(server.federation, "south").read()
    return Caller(server.address, grpc.ssl_channel_credentials(authority, key, certificate))
