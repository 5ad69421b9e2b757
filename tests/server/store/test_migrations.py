"""The tables of the store: made from nothing, and brought up to date from every earlier revision."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from contextlib import closing
from signal import SIGKILL
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event

from privacy.errors import StorageError
from server.store import schema
from server.store.database import Database
from server.store.store import Store
from server.store.tables import METADATA, RUNS
from tests.server.store.stores import place_in, run_named

if TYPE_CHECKING:
    from pathlib import Path

    from server.settings import ServerFolder

pytestmark = pytest.mark.xdist_group("databases")


def differences(store: Store) -> object:
    """How the database differs from what the code expects."""
    return store.database.read(
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), METADATA
        )
    )


def test_the_tables_that_migrations_make_are_those_that_the_code_uses(place: ServerFolder) -> None:
    with Store.open(place) as store:
        assert differences(store) == []


def test_a_store_of_the_first_revision_is_brought_up_to_date_with_what_is_in_it(
    place: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "NEWEST", "0001")
        with Store.open(place) as store:
            run = run_named()
            store.database.write(
                lambda connection: connection.execute(
                    sa.insert(RUNS).values(
                        digest=run.digest, name="early", document=run.document, by="ada", submitted=0.0,
                        status="finished", reason=b"", rounds=1, released=0,
                    )
                )
            )  # fmt: skip
            store.record(run.digest).write_state(b"state", 1)
            assert differences(store) != []
    with Store.open(place) as store:
        assert differences(store) == []
        assert store.record(run.digest).state() == b"state"
        assert (store.run("early").released, store.run("early").behind) == (1, ())


def test_a_store_of_a_newer_version_is_refused_and_stays_as_it_is(place: ServerFolder) -> None:
    with Store.open(place) as store:
        store.database.write(
            lambda connection: connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        )
    with pytest.raises(StorageError, match=r"a newer version of Cloister has written this store; use that version"):
        Store.open(place)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_in(tmp_path)
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "NEWEST", "0001")
        Store.open(place).close()
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as database, database:
        database.execute("CREATE TABLE leaders (other INTEGER)")  # the second table that the migration makes
    with pytest.raises(StorageError, match=r"store\.sqlite: SQLite fails \(table leaders already exists\)"):
        Store.open(place)
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as database, database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        database.execute("DROP TABLE leaders")
    with Store.open(place) as store:
        assert differences(store) == []


def _killed_after(calls: int, place: ServerFolder) -> bool:
    """Open a store in a process of its own that is killed after so many calls of the database; return whether it was.

    Forked, as starting takes long.
    """
    if not (child := os.fork()):
        left = calls

        def count(*_: object) -> None:
            nonlocal left
            if not left:
                os.kill(os.getpid(), SIGKILL)
            left -= 1

        for name in ("begin", "before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(Engine, name, count)
        try:
            Store.open(place)
        finally:
            os._exit(0 if left else 1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.soak)])
def test_a_migration_that_is_killed_anywhere_goes_on_at_the_next_start(
    place: ServerFolder, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = run_named()
    with monkeypatch.context() as earlier:
        earlier.setattr(schema, "NEWEST", "0002")
        with Store.open(place) as store:
            added = sa.text(
                "INSERT INTO runs VALUES (1, :digest, 'early', 'signed', 'ada', 0, 'failed', '', 0, 0, 1, 0)"
            )
            store.database.write(lambda connection: connection.execute(added, {"digest": run.digest}))
    kills = 0
    while _killed_after(step * kills, place):
        kills += 1
        with (
            closing(Database(place.settings.store.url, place.folder)) as database,
            database.engine.connect() as connection,
        ):
            version = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            assert version in {"0002", schema.NEWEST}
            assert connection.scalar(sa.text("SELECT digest FROM runs")) == run.digest
    assert kills > 4
    with Store.open(place) as store:
        assert differences(store) == []
        assert store.run("early").digest == run.digest


def test_servers_that_migrate_at_once_all_open_the_store(place: ServerFolder) -> None:
    children = [multiprocessing.get_context("fork").Process(target=Store.open, args=(place,)) for _ in range(4)]
    with closing(Database(place.settings.store.url, place.folder)) as database:
        database.read(lambda _: None)  # one process makes a new file
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0] * 4
    with Store.open(place) as store:
        assert differences(store) == []
