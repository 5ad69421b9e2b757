"""Encrypt the values of an existing store, or decrypt them, as the server's folder is. Killed, it is begun again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from privacy.at_rest.protection import overwritten
from privacy.at_rest.sealed_value import is_sealed_value
from privacy.at_rest.vaults import header_of
from server.store.sealing import Sealing
from server.store.store import Store
from server.store.tables import METADATA, RUNS, Sealed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Table

    from server.settings import ServerFolder
    from server.store.database import Database

_BYTES = 1 << 24  # of values changed in one transaction


def convert(place: ServerFolder) -> int:
    """Bring all values of a store into the form that the folder's vault asks for; return how many were changed.

    In SQLite, what stood there before is overwritten with zeros, also in the log. PostgreSQL keeps old content for a
    while, as it always does.

    Raises:
        CloisterError: if the store or the vault cannot be used, or a value was altered.
    """
    if not Store.exists(place):
        return 0
    sealed = header_of(place.folder).state != "decrypting"
    with Store.open(place) as store:
        database, sealing = store.database, Sealing(place.folder)
        database.read(lambda connection: connection.scalar(sa.select(sa.func.count()).select_from(RUNS)))
        if database.file is None:
            return _all(database, sealing, sealed=sealed)
        with overwritten(database.file.with_name(f"{database.file.name}-wal")):
            count = _all(database, sealing, sealed=sealed)
            database.close()  # which removes the log
        return count


def _all(database: Database, sealing: Sealing, *, sealed: bool) -> int:
    count = 0
    for table in METADATA.sorted_tables:
        for column in (column for column in table.columns if isinstance(column.type, Sealed)):
            count += _column(database, sealing, table, column, sealed=sealed)
    return count


def _column(database: Database, sealing: Sealing, table: Table, column: sa.Column[bytes], *, sealed: bool) -> int:
    """Convert one column; a bounded number of bytes in one transaction."""
    names = ["digest"] if table is RUNS else [key.name for key in table.primary_key]
    keys = [table.c[name] for name in names]
    size = sa.func.length(column)
    rows = database.read(lambda connection: connection.execute(sa.select(*keys, size).order_by(*keys)).all())
    count = 0
    for batch in _batches([(tuple(row[:-1]), row[-1]) for row in rows if row[-1]]):

        def change(connection: sa.Connection, batch: list[tuple[str | int, ...]] = batch) -> int:
            changed = 0
            for key in batch:
                which = sa.and_(*(one == value for one, value in zip(keys, key, strict=True)))
                changed += _value(connection, sealing, (table, column, which), key, sealed=sealed)
            return changed

        count += database.write(change)
    return count


def _value(
    connection: sa.Connection,
    sealing: Sealing,
    where: tuple[Table, sa.Column[bytes], ColumnElement[bool]],
    key: tuple[str | int, ...],
    *,
    sealed: bool,
) -> bool:
    table, column, which = where
    stored = connection.scalar(sa.select(column).where(which))
    if not stored or is_sealed_value(stored) == sealed:
        return False
    value = sealing.open(table.name, key, stored, column.name)
    value = sealing.seal(table.name, key, value, column.name)
    connection.execute(sa.update(table).where(which).values({column.name: value}))
    return True


def _batches(rows: list[tuple[tuple[str | int, ...], int]]) -> Iterator[list[tuple[str | int, ...]]]:
    batch, size = list[tuple[str | int, ...]](), 0
    for key, length in rows:
        batch.append(key)
        size += length
        if size >= _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
