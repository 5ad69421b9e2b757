"""What goes wrong with a database is said in one sentence, and nothing is lost."""

from __future__ import annotations

import os
import resource
import threading
from contextlib import contextmanager
from shutil import copytree
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from privacy.errors import ConfigError, StorageError
from server.store import database as databases
from server.store.database import PASSWORD_VARIABLE, is_away
from server.store.records import CHUNK
from server.store.store import Store
from server.store.tables import CHUNKS, EVENTS
from tests.client.data.sources.databases import PASSWORD
from tests.ports import unused_port
from tests.server.store.stores import away, connected, place_in, run_named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.settings import ServerFolder

pytestmark = pytest.mark.xdist_group("databases")


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: as on a full disk, writes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_sum_for_which_there_is_no_room_leaves_the_one_before(tmp_path: Path) -> None:
    with Store.open(place_in(tmp_path)) as store:
        digest = store.submit(run_named()).digest
        record = store.record(digest)
        record.write_sum(1, [b"first"])
        with no_room(1 << 20):
            with pytest.raises(StorageError, match=r"store\.sqlite: .*(full; make room|fails; check the disk)"):
                record.write_sum(1, [bytes(4 << 20)])
            with pytest.raises(StorageError, match=r"file too large; raise this account's limit"):
                record.check_room(4 << 20)
        assert record.read_sum(1) == b"first"
        record.write_sum(1, [b"second"])
        assert record.read_sum(1) == b"second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store.sqlite"]


def test_an_event_for_which_the_disk_is_full_is_written_once_there_is_room(tmp_path: Path) -> None:
    with Store.open(place_in(tmp_path)) as store:
        record = store.record(store.submit(run_named()).digest)
        limit = "PRAGMA max_page_count = {}"
        store.database.write(lambda connection: connection.exec_driver_sql(limit.format(1)).scalar())
        with pytest.raises(StorageError, match=r"store\.sqlite: the disk is full; make room on it"):
            record.append({"event": "long", "text": "x" * (1 << 20)})
        assert store.events(record.run) == []
        store.database.write(lambda connection: connection.exec_driver_sql(limit.format(1 << 20)))
        record.append({"event": "short"})
        assert store.events(record.run) == [(1, {"event": "short"})]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"/sys/store\.sqlite: .*; let this account read and write this file and its"
    ):
        Store.open(place_in(tmp_path, "sqlite:////sys/store.sqlite"))  # where not even root may


@pytest.mark.parametrize("damage", ["head", "middle"])
def test_a_damaged_file_is_named_and_stays_as_it_is(tmp_path: Path, damage: str) -> None:
    with Store.open(place_in(tmp_path)) as store:
        record = store.record(store.submit(run_named()).digest)
        record.write_sum(1, [bytes(range(256)) * (1 << 12)])
    file = tmp_path / "store.sqlite"
    data = bytearray(file.read_bytes())
    start = 0 if damage == "head" else 1 << 14
    data[start : start + (1 << 15)] = b"\xff" * (1 << 15)
    file.write_bytes(data)
    with (
        pytest.raises(StorageError, match=r"store\.sqlite: this database is damaged; restore it from the server's"),
        Store.open(place_in(tmp_path)) as store,
    ):
        store.runs()
    assert file.read_bytes() == bytes(data)


def test_a_log_that_lost_its_end_is_named(tmp_path: Path) -> None:
    with Store.open(place_in(tmp_path)) as store:
        store.submit(run_named())
        os.truncate(tmp_path / "store.sqlite-wal", 0)
        with pytest.raises(StorageError, match="this database is damaged; restore it from the server's"):
            Store.open(place_in(tmp_path))


def test_what_a_disk_altered_without_a_database_noticing_is_not_taken_for_what_was_written(place: ServerFolder) -> None:
    with Store.open(place) as store:
        digest = store.submit(run_named()).digest
        record = store.record(digest)
        record.append({"event": "started"})
        record.write_sum(1, [bytes(CHUNK), b"and more"])
        assert record.read_sum(1) == bytes(CHUNK) + b"and more"
        altered = sa.update(CHUNKS).where(CHUNKS.c.number == 1).values(value=b"and m0re")
        store.database.write(lambda connection: connection.execute(altered))
        with pytest.raises(StorageError, match="the sum of round 1 is lost or damaged; restore the database"):
            record.read_sum(1)
        store.database.write(lambda connection: connection.execute(sa.update(EVENTS).values(value=b"\xff{")))
        with pytest.raises(StorageError, match="this database is damaged; restore it from the server's backup"):
            store.events(digest)


@pytest.mark.parametrize("lost", ["is empty", "is missing, though its log store.sqlite-wal is there"])
def test_a_file_that_lost_its_runs_is_not_taken_for_a_new_one(tmp_path: Path, lost: str) -> None:
    killed = tmp_path / "killed"
    with Store.open(place_in(tmp_path)) as store:
        store.submit(run_named())
        copytree(tmp_path, killed, ignore=lambda *_: {"killed"})
    file, log = killed / "store.sqlite", killed / "store.sqlite-wal"
    file.write_bytes(b"") if lost == "is empty" else file.unlink()
    kept = log.read_bytes()
    with pytest.raises(StorageError) as raised:
        Store.open(place_in(killed))
    assert str(raised.value) == (
        f"{file} {lost}; restore it from the server's backup, or, if it had no runs, remove store.sqlite*"
    )
    assert log.read_bytes() == kept


@pytest.mark.parametrize("lost", ["DELETE FROM alembic_version", "DROP TABLE alembic_version"])
def test_tables_without_a_version_are_not_made_anew(place: ServerFolder, lost: str) -> None:
    with Store.open(place) as store:
        store.submit(run_named())
        store.database.write(lambda connection: connection.execute(sa.text(lost)))
    with pytest.raises(StorageError, match="this database is damaged; restore it from the server's backup"):
        Store.open(place)


def test_a_server_that_is_killed_while_it_makes_its_store_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    file = tmp_path / "store.sqlite"
    for call in ("fsync", "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, killed)
            with pytest.raises(Killed):
                Store.open(place_in(tmp_path))
        assert not file.exists()
    with Store.open(place_in(tmp_path)) as store:
        assert store.runs() == []
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("store.sqlite", "url in [store] names no database that Cloister can use; write sqlite:///store.sqlite, or"),
        ("sqlite://", "url in [store] names no database that Cloister can use"),
        ("mysql://me@db/store", "url in [store] names no database that Cloister can use"),
        ("postgresql+psycopg://me@db/store?options=-csearch_path=x", "names no database that Cloister can use"),
        ("postgresql+psycopg://me:secret@db/store", "contains a password; remove it, and set the environment variable"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Store.open(place_in(tmp_path, url))
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_or_refuses_the_password_is_named(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"postgresql+psycopg://owner@127.0.0.1:{unused_port()}/postgres"
    with pytest.raises(StorageError, match=r"PostgreSQL cannot be used \(.*refused.*\); check that PostgreSQL runs"):
        Store.open(place_in(tmp_path, away))
    for password in ("", "wrong"):
        monkeypatch.setenv(PASSWORD_VARIABLE, password)
        advice = rf"password.*; set the environment variable {PASSWORD_VARIABLE}"
        with pytest.raises(StorageError, match=advice) as raised:
            Store.open(place_in(tmp_path, database))
        assert not is_away(raised.value)


def test_what_somebody_has_to_mend_in_a_postgresql_is_told_from_what_passes(tmp_path: Path, database: str) -> None:
    server = database.rpartition("/")[0]
    with connected(database) as connection:
        connection.execute(f"CREATE ROLE narrow LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE DATABASE narrow")
        connection.execute("REVOKE CONNECT ON DATABASE narrow FROM public")

    def refused(url: str) -> StorageError:
        with pytest.raises(StorageError) as raised:
            Store.open(place_in(tmp_path, url))
        return raised.value

    theirs = database.replace("owner@", "narrow@")
    try:
        for url, advice in (
            (f"{server}/nowhere", "create this database, or correct its name in [store] url"),
            (theirs, "let [store] url's user own this database, or a schema of it"),
            (f"{theirs.rpartition('/')[0]}/narrow", "let [store] url's user own this database, or a schema of it"),
            (f"{database}?sslmode=require", "correct sslmode and the certificates in [store] url"),
        ):
            error = refused(url)
            assert str(error).endswith(f"; {advice}")
            assert not is_away(error)
        with connected(database) as connection:
            connection.execute("ALTER ROLE narrow NOLOGIN")
        assert str(error := refused(theirs)).endswith("; let [store] url's user log in, or name another")
        assert not is_away(error)
        with connected(database) as connection:
            connection.execute("ALTER ROLE narrow LOGIN CONNECTION LIMIT 0")
        assert is_away(refused(theirs))
        with connected(database) as connection:
            connection.execute("ALTER DATABASE narrow SET default_transaction_read_only = on")
        assert is_away(refused(f"{server}/narrow"))
    finally:
        with connected(database) as connection:
            connection.execute("DROP DATABASE narrow")
            connection.execute("DROP ROLE narrow")


def end_connections(url: str) -> int:
    """End every connection to the database but this one."""
    with connected(url) as connection:
        ended = connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchone()
    assert ended
    return int(ended[0])


def test_connections_that_are_lost_again_and_again_lose_no_event_and_repeat_none(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_PAUSE", 0.01)
    with Store.open(place_in(tmp_path, database)) as store:
        digest = store.submit(run_named()).digest
        record = store.record(digest)
        done = threading.Event()
        ended, number = list[int](), 0

        def disturb() -> None:
            while not done.wait(0.005):
                ended.append(end_connections(database))

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            while number < 30 or sum(ended) <= 2:
                with record.together():
                    record.append({"event": "round", "round": number})
                    record.write_state(str(number).encode(), number)
                number += 1
        finally:
            done.set()
            thread.join()
        assert [event["round"] for _, event in store.events(digest)] == list(range(number))
        assert record.state() == str(number - 1).encode()


def test_a_database_that_stays_away_ends_in_a_sentence(tmp_path: Path, database: str) -> None:
    with Store.open(place_in(tmp_path, database)) as store:
        digest = store.submit(run_named()).digest
        store.database.patience = 0.1
        with (
            away(database),
            pytest.raises(StorageError, match=r"PostgreSQL cannot be used .*not currently accepting") as raised,
        ):
            store.record(digest).append({"event": "lost"})
        assert is_away(raised.value)
        store.database.patience = 1.0
        assert store.events(digest) == []
        store.record(digest).append({"event": "there"})
        assert len(store.events(digest)) == 1
