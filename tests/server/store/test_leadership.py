"""Of several servers on one store, one leads, and another takes over if it is killed: processes, a real PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import pytest

from privacy.errors import ConfigError, StorageError
from server import process
from server.founding import create_consortium
from server.process import open_service, serve
from server.settings import read_consortium
from server.store import database as databases
from server.store import leadership
from server.store.store import Store
from tests.federations import await_condition
from tests.ports import unused_port
from tests.server.store.stores import away, connected, place_in, run_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.settings import ServerFolder

pytestmark = [pytest.mark.xdist_group("databases"), pytest.mark.timeout(120)]

LONG = 30.0  # seconds, within which another server must take over
LEADS = """
import sys, time
from pathlib import Path
from server.settings import ConsortiumSettings, ServerFolder, StoreSettings
from server.store.store import Store
settings = ConsortiumSettings("Test", "localhost:0", store=StoreSettings(sys.argv[2]))
with Store.open(ServerFolder(Path(sys.argv[1]), settings)) as store, store.lead():
    print("leads", flush=True)
    time.sleep(600)
"""


class GivenUpError(Exception):
    """Ends a wait."""


@contextmanager
def leader(place: ServerFolder) -> Iterator[subprocess.Popen[str]]:
    """A process that leads on a store."""
    command = [sys.executable, "-c", LEADS, str(place.folder), place.settings.store.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        try:
            yield process
        finally:
            process.kill()


def give_up() -> None:
    raise GivenUpError


def test_on_one_sqlite_file_a_second_server_refuses_until_the_first_is_killed(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    with Store.open(place) as store:
        with leader(place) as first:
            with (
                pytest.raises(StorageError, match="another process serves the runs in this store; stop it"),
                store.lead(),
            ):
                pass
            first.kill()
            first.wait()
        with store.lead() as leads:
            leads.check()


def test_on_one_postgresql_a_second_server_takes_over_from_one_that_is_killed(tmp_path: Path, database: str) -> None:
    place = place_in(tmp_path, database)
    with leader(place) as first, Store.open(place) as store:
        with pytest.raises(GivenUpError), store.lead(give_up):
            pass
        first.kill()
        killed = time.monotonic()
        with store.lead() as leads:
            assert time.monotonic() - killed < LONG
            leads.check()
            store.submit(run_named())


def test_a_server_that_led_and_does_not_know_that_another_does_writes_nothing(tmp_path: Path, database: str) -> None:
    place = place_in(tmp_path, database)
    with Store.open(place) as old, Store.open(place) as new, old.lead() as led:
        digest = old.submit(run_named()).digest
        with connected(database) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        with new.lead():
            with pytest.raises(StorageError, match="this server leads no longer"):
                old.record(digest).append({"event": "late"})
            assert led.lost.wait(LONG)
            new.record(digest).append({"event": "in time"})
        assert [event["event"] for _, event in new.events(digest)] == ["in time"]


def test_a_leader_whose_connection_is_lost_leads_on_if_nobody_took_over(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leadership, "_LOOK", 0.05)
    place = place_in(tmp_path, database)
    with Store.open(place) as store, store.lead() as leads, connected(database) as connection:
        holds = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
        (before,) = connection.execute(holds).fetchall()
        connection.execute("SELECT pg_terminate_backend(%s)", (before[0],))
        deadline = time.monotonic() + LONG
        while (after := connection.execute(holds).fetchall()) in ([], [before]) and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert len(after) == 1
        assert not leads.lost.is_set()
        store.submit(run_named())


def test_a_server_that_could_not_serve_says_so_and_does_not_wait_to_lead(tmp_path: Path, database: str) -> None:
    create_consortium(tmp_path, "Test", "localhost", 9440, joining_port=9441, online=True)
    settings = tmp_path / "server" / "consortium.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(f'{text}\n[store]\nurl = "{database}"\n', encoding="utf-8")
    other = Path(copytree(tmp_path / "server", tmp_path / "server-2"))
    with (
        leader(read_consortium(tmp_path / "server")),
        pytest.raises(ConfigError, match=r"and the server reads .*server-2"),
        open_service(read_consortium(other), print, threading.Event()),
    ):
        pass


def test_a_server_whose_database_is_away_waits_for_it_and_serves_again(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_PATIENCE", 0.5)
    monkeypatch.setattr(leadership, "_LOOK", 0.05)
    monkeypatch.setattr(process, "_AWAY", 0.05)
    create_consortium(tmp_path, "Test", "localhost", unused_port(), joining_port=unused_port(), online=True)
    settings = tmp_path / "server" / "consortium.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(f'{text}\n[store]\nurl = "{database}"\n', encoding="utf-8")
    said, ended = list[str](), threading.Event()
    server = threading.Thread(target=serve, args=(settings.parent, said.append, ended))

    def await_said(*, waits: int, serves: int) -> None:
        await_condition(
            lambda: (
                sum("; this server waits for it" in text for text in said) == waits
                and sum("sites may join at port" in text for text in said) == serves
            ),
            LONG,
        )

    with away(database):
        server.start()
        await_said(waits=1, serves=0)
    try:
        await_said(waits=1, serves=1)
        with away(database):
            await_said(waits=2, serves=1)
        await_said(waits=2, serves=2)
    finally:
        ended.set()
        server.join(LONG)
    assert not server.is_alive()
    assert "this server leads no longer, and waits to lead again" in said
