"""The tables of the store: made from nothing, and brought up to date from every earlier revision."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from privacy.errors import StorageError
from server.store import schema
from server.store.store import Store
from server.store.tables import METADATA
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
            digest = store.submit(run_named()).digest
            store.record(digest).write_state(b"state", 1)
            assert differences(store) != []
    with Store.open(place) as store:
        assert differences(store) == []
        assert store.record(digest).state() == b"state"


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
