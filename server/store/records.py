"""The record of one run, in the store's database. Sums are kept in chunks, so that none is ever one value."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from privacy.errors import StorageError
from privacy.failures import sentence
from privacy.storage import set_aside
from server.store.tables import CHUNKS, EVENTS, RUNS, STATES, SUMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

    from server.store.database import Database
    from server.store.sealing import Sealing

    Change = Callable[[Connection], None]

CHUNK = 1 << 20
"""Bytes of a sum in one row."""

_DIGEST = "d:"
"""Before a digest in a sum's version; earlier versions of Cloister drew it at random."""

_AT_ONCE = 64  # chunks written in one transaction, so that SQLite's log stays small


@dataclass
class StoredRecord:
    """A `strategies.run_record.RunRecord`. Of the processes that have one of a run, one at most may write."""

    database: Database
    sealing: Sealing
    run: str
    scratch: Path
    appended: Callable[[], None]  # called once events are in the database
    _pending: list[Change] | None = field(default=None, init=False)
    _appends: bool = field(default=False, init=False)  # whether there are events that are not in the database yet

    @property
    def place(self) -> str:
        """Where the record is, for messages."""
        return f"{self.database.place}, run {self.run[:8]}"

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what is written within this context in one transaction, at its end, unless an exception leaves it."""
        if self._pending is not None:
            yield
            return
        changes: list[Change] = []
        self._pending = changes
        try:
            yield
        finally:
            self._pending = None
        if changes:
            self._commit(changes)

    def _write(self, change: Change) -> None:
        if self._pending is None:
            self._commit([change])
        else:
            self._pending.append(change)

    def _commit(self, changes: Sequence[Change]) -> None:
        def run(connection: Connection) -> None:
            for change in changes:
                change(connection)

        self.database.write(run)
        if self._appends:
            self._appends = False
            self.appended()

    def state(self) -> bytes | None:
        """Return the run's state; None if it was never begun."""
        query = sa.select(STATES.c.value).where(STATES.c.run == self.run)
        stored: bytes | None = self.database.read(lambda connection: connection.scalar(query))
        return None if stored is None else self.sealing.open("states", (self.run,), stored)

    def write_state(self, state: bytes, released: int) -> None:
        """Replace the run's state, and note how many rounds released a sum."""
        sealed = self.sealing.seal("states", (self.run,), state)

        def change(connection: Connection) -> None:
            update = sa.update(STATES).where(STATES.c.run == self.run).values(value=sealed)
            if not connection.execute(update).rowcount:
                connection.execute(sa.insert(STATES).values(run=self.run, value=sealed))
            connection.execute(sa.update(RUNS).where(RUNS.c.digest == self.run).values(released=released))

        self._write(change)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Append an event."""
        text = json.dumps(entry, allow_nan=False).encode()
        tried = dict[int, bytes]()  # by a transaction whose connection was lost: it may be there

        def change(connection: Connection) -> None:
            mine = (EVENTS.c.run == self.run) & (EVENTS.c.number == next(iter(tried), 0))
            if tried and connection.scalar(sa.select(EVENTS.c.value).where(mine)) in tried.values():
                return
            last = connection.scalar(sa.select(sa.func.max(EVENTS.c.number)).where(EVENTS.c.run == self.run))
            number = (last or 0) + 1
            sealed = self.sealing.seal("events", (self.run, number), text)
            tried.clear()
            tried[number] = sealed
            connection.execute(sa.insert(EVENTS).values(run=self.run, number=number, value=sealed))

        self._appends = True
        self._write(change)

    def write_sum(self, number: int, parts: Sequence[bytes | memoryview]) -> None:
        """Keep the sum of a round, in place of an earlier one. Only the last transaction makes its chunks count."""
        version, mine = _digest(parts), (CHUNKS.c.run == self.run) & (CHUNKS.c.round == number)
        rows = list[dict[str, Any]]()
        size = 0
        for place, chunk in enumerate(_chunks(parts)):
            size += len(chunk)
            sealed = self.sealing.seal("chunks", (self.run, number, version, place), chunk)
            rows.append({"run": self.run, "round": number, "version": version, "number": place, "value": sealed})
            if len(rows) == _AT_ONCE:
                self._insert(rows)
                rows = []

        def change(connection: Connection) -> None:
            _insert_once(connection, rows)
            connection.execute(sa.delete(CHUNKS).where(mine & (CHUNKS.c.version != version)))
            connection.execute(sa.delete(SUMS).where((SUMS.c.run == self.run) & (SUMS.c.round == number)))
            connection.execute(sa.insert(SUMS).values(run=self.run, round=number, version=version, size=size))

        self._write(change)

    def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.database.write(lambda connection: _insert_once(connection, rows))

    def read_sum(self, number: int) -> bytes | bytearray:
        """Return the sum of a round.

        Raises:
            StorageError: if it is not whole.
        """

        def read(connection: Connection) -> bytearray:
            found = connection.execute(
                sa.select(SUMS.c.version, SUMS.c.size).where((SUMS.c.run == self.run) & (SUMS.c.round == number))
            ).one_or_none()
            version, size = (found.version, found.size) if found else ("", -1)
            query = sa.select(CHUNKS.c.number, CHUNKS.c.value).where(
                (CHUNKS.c.run == self.run) & (CHUNKS.c.round == number) & (CHUNKS.c.version == version)
            )
            total = bytearray()
            rows = connection.execution_options(yield_per=8).execute(query.order_by(CHUNKS.c.number))
            for place, (at, stored) in enumerate(rows):
                if place == at:
                    total += self.sealing.open("chunks", (self.run, number, version, at), stored)
            if len(total) != size or (version.startswith(_DIGEST) and version != _digest([total])):
                msg = (
                    f"{self.place}: the sum of round {number} is lost or damaged; restore the database from the "
                    "server's backup, or sign the run again"
                )
                raise StorageError(msg)
            return total

        return self.database.read(read)

    def has_sum(self, number: int) -> bool:
        """Whether a round's sum is kept."""
        query = sa.select(SUMS.c.round).where((SUMS.c.run == self.run) & (SUMS.c.round == number))
        return self.database.read(lambda connection: connection.scalar(query)) is not None

    def remove_sum(self, number: int) -> None:
        """Forget a round's sum."""

        def change(connection: Connection) -> None:
            for table in (SUMS, CHUNKS):
                connection.execute(sa.delete(table).where((table.c.run == self.run) & (table.c.round == number)))

        self._write(change)

    @property
    def holds_sums(self) -> bool:
        """Whether any round's sum is kept."""
        query = sa.select(SUMS.c.round).where(SUMS.c.run == self.run).limit(1)
        return self.database.read(lambda connection: connection.scalar(query)) is not None

    def check_room(self, size: int) -> None:
        """Check that the server's disk has room for `size` more bytes, and for what SQLite's log takes meanwhile.

        Raises:
            StorageError: if it has not.
        """
        file = self.database.file
        place = (file.parent if file else self.scratch) / f".space.{os.getpid()}"
        try:
            set_aside(place, size + min(size, _AT_ONCE * CHUNK))
            place.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(sentence(error)) from error


def _digest(parts: Sequence[bytes | bytearray | memoryview]) -> str:
    """Return a sum's version: a digest of its bytes, which neither SQLite nor PostgreSQL checks for damage."""
    found = sha256()
    for part in parts:
        found.update(part)
    return _DIGEST + found.hexdigest()[:30]


def _insert_once(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert chunks; a transaction whose connection was lost may have inserted them."""
    if not rows:
        return
    first = rows[0]
    mine = sa.and_(*(CHUNKS.c[name] == first[name] for name in ("run", "round", "version", "number")))
    if connection.scalar(sa.select(CHUNKS.c.number).where(mine)) is None:
        connection.execute(sa.insert(CHUNKS), rows)


def _chunks(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """Yield the content of all parts in chunks of one size, the last one shorter."""
    gathered = bytearray()
    for part in parts:
        rest = memoryview(part).cast("B") if len(part) else memoryview(b"")
        while rest:
            room = CHUNK - len(gathered)
            gathered += rest[:room]
            rest = rest[room:]
            if len(gathered) == CHUNK:
                yield bytes(gathered)
                gathered = bytearray()
    if gathered:
        yield bytes(gathered)
