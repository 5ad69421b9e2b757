"""What systemd is told: that a process is ready, alive, and stopping."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from threading import enumerate as enumerate_threads

import pytest

from cloister import service_manager
from simulations.engine.federation import Federation
from tests.federations import TERMS, FederationMaker
from tests.forked import ForkedAgents
from tests.ports import unused_port

LONG = 60.0  # seconds


class Manager:
    """Listens where systemd would."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._socket.settimeout(LONG)
        self.env = {"NOTIFY_SOCKET": path}

    def hear(self) -> str:
        return self._socket.recv(1024).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a path", "an abstract name"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    name = str(tmp_path / "n") if request.param == "a path" else f"@cloister-test-{os.getpid()}"
    listening = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield listening
    for thread in enumerate_threads():
        if thread.name == "watchdog":  # otherwise its last sign would be the next test's
            thread.join(LONG)
    listening.close()


def test_systemd_gets_signs_of_life_until_the_process_stops(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with service_manager.watched():
        service_manager.ready()
        heard = set[str]()
        for _ in range(1000):  # signs of life may come first
            heard.add(manager.hear())
            if len(heard) > 1:
                break
        assert heard == {"READY=1", "WATCHDOG=1"}
    while (last := manager.hear()) == "WATCHDOG=1":
        pass
    assert last == "STOPPING=1"


def test_a_process_that_hangs_gives_no_sign(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000")
    asked, hanging = Event(), Event()

    def hang() -> None:
        asked.set()
        hanging.wait(LONG)

    with ExitStack() as stack:
        stack.callback(hanging.set)
        with service_manager.watched(hang):
            assert asked.wait(LONG)
        assert manager.hear() == "STOPPING=1"


def test_nobody_is_told_anything_where_nobody_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(variable, raising=False)
    with service_manager.watched():
        service_manager.ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.ready()
    for usec, process in (("", ""), ("x", ""), ("0", ""), ("1000", "1")):
        monkeypatch.setenv("WATCHDOG_USEC", usec)
        monkeypatch.setenv("WATCHDOG_PID", process)
        assert service_manager._interval() is None


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    address = f"localhost:{unused_port()}"
    made = make_federation(terms={"north": TERMS}, server=address)
    (made.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    return made


@pytest.mark.slow
@pytest.mark.xdist_group("agents")
@pytest.mark.parametrize("name", ["server", "agent"])
def test_server_and_agent_tell_systemd_when_they_are_ready_and_when_they_stop(
    name: str, federation: Federation, tmp_path: Path
) -> None:
    manager = Manager(str(tmp_path / "n"))
    folder = federation.server if name == "server" else federation.paths["north"]
    with ForkedAgents() as processes:
        child = processes.start(name, tmp_path / "log", name, str(folder), env=manager.env)
        assert manager.hear() == "READY=1", processes.tail(name)
        child.terminate()
        while (heard := manager.hear()) == "READY=1":
            pass
        assert heard == "STOPPING=1"
        assert child.wait(LONG) == 130, processes.tail(name)
    manager.close()
