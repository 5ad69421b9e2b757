"""Of several addresses of a server, the first that answers is used, whichever are dead."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from simulations.engine.federation import Federation
from tests.federations import tls_of
from tests.transport.hubs import listening
from transport import dialling
from transport.address import Address
from transport.channel import OPTIONS, probe
from transport.dialling import Place, connect, places

WITHIN = 4.0  # seconds; a dead address alone takes longer


@contextmanager
def dead() -> Iterator[Place]:
    """An address that does not answer: its queue is full, which drops packets as a firewall does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for attempt in waiting:
            attempt.setblocking(False)  # noqa: FBT003 - socket knows no name for it
            attempt.connect_ex(place)
        try:
            yield socket.AF_INET, place
        finally:
            for attempt in waiting:
                attempt.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("addresses"), ("north", "south"))


@pytest.fixture(scope="module")
def port(federation: Federation) -> Iterator[int]:
    with listening(federation) as number:
        yield number


def test_a_dead_address_does_not_hold_up_the_next() -> None:
    with dead() as silent, socket.create_server(("127.0.0.1", 0)) as live:
        start = time.monotonic()
        with connect([silent, silent, (socket.AF_INET, live.getsockname())], 30) as connection:
            assert connection.getpeername() == live.getsockname()
            assert connection.gettimeout() == 30
        assert time.monotonic() - start < WITHIN


def test_an_address_that_refuses_is_passed_over_and_named_if_it_is_the_only_one() -> None:
    with socket.socket() as held, socket.create_server(("127.0.0.1", 0)) as live:
        held.bind(("127.0.0.1", 0))
        refusing: Place = socket.AF_INET, held.getsockname()
        connect([refusing, (socket.AF_INET, live.getsockname())], 10).close()
        with pytest.raises(ConnectionRefusedError):
            connect([refusing], 10)


def test_without_an_answer_it_ends_at_its_deadline() -> None:
    with dead() as silent:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            connect([silent, silent], 0.3)
        assert time.monotonic() - start < WITHIN


def test_an_address_without_a_route_is_reported_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):  # as an unreachable network, it is known without waiting
        connect([(socket.AF_UNIX, "/nowhere/at/all")], 30)
    assert time.monotonic() - start < WITHIN


def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    given = [(six, 1, 6, "", (f"2001:db8::{n}", 9440)) for n in range(3)] + [(four, 1, 6, "", ("192.0.2.1", 9440))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: given)
    assert [family for family, _ in places(Address("fed.example.org", 9440))] == [six, four, six, six]


def test_an_agent_reaches_a_server_of_whose_two_addresses_one_is_dead(
    federation: Federation, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    live: Place = socket.AF_INET, ("127.0.0.1", port)
    authority, key, certificate = tls_of(federation, "north").read()
    start = time.monotonic()
    with dead() as silent:
        monkeypatch.setattr(dialling, "places", lambda *_: [silent, live])
        probe(f"localhost:{port}", tls_of(federation, "north"))
        target = f"ipv4:{silent[1][0]}:{silent[1][1]},127.0.0.1:{port}"  # as gRPC sees such a name
        options: Any = (*OPTIONS, ("grpc.ssl_target_name_override", "localhost"))
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        channel = grpc.secure_channel(target, credentials, options=options)
        grpc.channel_ready_future(channel).result(30)
        channel.close()
    assert time.monotonic() - start < 2 * WITHIN
