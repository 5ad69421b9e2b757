"""Bring the database's tables up to date: the migrations in `server.store.migrations`, by Alembic."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from privacy.errors import StorageError
from server.store.tables import RUNS

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from server.store.database import Database

NEWEST = "0003"
"""The newest migration."""

_LOCK = 0x636C6F6973  # of PostgreSQL, while tables change


def upgrade(database: Database) -> None:
    """Bring the tables up to date, unless they are.

    Raises:
        StorageError: if a newer version of Cloister has changed them, or the database cannot be used.
    """
    if database.read(_version) != NEWEST:
        database.write(lambda connection: _migrate(connection, database))


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return found


def _migrate(connection: Connection, database: Database) -> None:
    from alembic import command  # noqa: PLC0415 - it takes a while to import, and is rarely needed
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    logging.getLogger("alembic").setLevel(logging.WARNING)  # it announces its plugins and every step
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    version = _version(connection)
    if version is not None and version not in known:
        msg = f"{database.place}: a newer version of Cloister has written this store; use that version, or a newer one"
        raise StorageError(msg)
    if version is None and sa.inspect(connection).has_table(RUNS.name):  # all tables are made in one transaction
        raise database.damaged()
    command.upgrade(config, NEWEST)
