"""A server without a run: sites join, agents connect and can be checked, and nobody gets work."""

import socket
from pathlib import Path
from threading import Event, Thread

import pytest

from client.exchange import Exchange
from client.joining import ask
from client.line_checks import LineChecks
from client.settings import read_site
from privacy.errors import UnreachableError
from server.founding import create_consortium
from server.process import open_service, serve
from server.settings import read_consortium
from tests.federations import FederationMaker, await_condition
from tests.ports import unused_port
from transport.address import Address


def test_agents_connect_as_soon_as_a_site_has_joined(tmp_path: Path) -> None:
    port, said, ended = unused_port(), list[str](), Event()
    coordinator = create_consortium(
        tmp_path, "lungs", "localhost", port, Address("localhost", port), joining_port=unused_port(), online=True
    )
    server = Thread(target=serve, args=(tmp_path / "server", said.append, ended), daemon=True)
    server.start()
    try:
        await_condition(lambda: bool(said))
        assert said[0].startswith("sites may join at port ")
        for site in ("north", "south"):
            assert ask(tmp_path / site, coordinator.invite(site))
        await_condition(lambda: f"agents may connect at port {port}" in said)
        place = read_site(tmp_path / "north")
        line = LineChecks(place)
        assert "MB/s to the server" in line.speed()
        assert "the server's" in line.clock()

        def newest() -> bool:  # south's joining made it
            with Exchange(place.settings.server, place.tls) as exchange:
                return exchange.roster(1) is not None and exchange.pull(0) is None

        await_condition(newest)
        assert line.roster().startswith("the server has roster 2, which the agent takes")
    finally:
        ended.set()
        server.join(20)
    assert not server.is_alive()


def test_a_port_that_is_taken_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        create_consortium(tmp_path, "lungs", "localhost", port, Address("localhost", port))
        with pytest.raises(UnreachableError, match="another program uses the port"):
            serve(tmp_path / "server", print, Event())


@pytest.mark.parametrize("name", ["hub", "crowds", "renewals", "roster", "queue"])
def test_a_server_that_is_ended_as_it_starts_a_thread_ends_as_at_any_other_time(
    name: str, make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, start = read_consortium(make_federation().server), Thread.start

    def interrupted(thread: Thread) -> None:
        if thread.name == name:
            raise KeyboardInterrupt  # as a signal does while the thread has not said yet that it has begun
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt), open_service(place, print, Event()):
            pass
    with open_service(place, print, Event()):  # nothing holds the folder
        pass
