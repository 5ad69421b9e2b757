"""Of several servers on one store, one leads: it alone writes to runs.

SQLite: a lock on a file beside the database; a second server refuses to start. PostgreSQL: an advisory lock on a
connection of its own; a second server waits, and leads within seconds once the first has ended. Whoever leads has a
number, a row that its transactions lock against removal and its successor removes: a server that no longer leads, and
does not know yet, writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from privacy.errors import StorageError
from privacy.failures import reason
from privacy.files import private
from privacy.locks import locked
from server.store.tables import LEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Connection

    from server.store.database import Database

log = logging.getLogger("cloister.server")

_WAIT = 1.0  # seconds between tries to lead
_LOOK = 2.0  # seconds between looks whether the connection that holds the lock is still there


class Leadership:
    """That this process leads, until `lost` is set."""

    def __init__(self) -> None:
        self.since = time.time()
        self.lost = threading.Event()

    def check(self) -> None:
        """Check that this process still leads.

        Raises:
            StorageError: if it does not.
        """
        if self.lost.is_set():
            msg = "this server leads no longer: it lost its database, or another server took over; start it again"
            raise StorageError(msg)


@contextmanager
def leading(database: Database, waiting: Callable[[], None]) -> Iterator[Leadership]:
    """Lead while this context lasts.

    Args:
        database: the store's.
        waiting: called about once a second while another server leads; may raise to give up.

    Raises:
        StorageError: if another process leads on the same SQLite file, or the database cannot be used.
    """
    if database.file:
        with _file_locked(database.file):
            yield Leadership()
        return
    leader = _PostgresLeader(database)
    try:
        leader.wait(waiting)
        yield leader.leadership
    finally:
        leader.stop()


@contextmanager
def _file_locked(database: Path) -> Iterator[None]:
    path = database.with_name(f".{database.name}.lock")
    try:
        with open(path, "ab", opener=private) as file:
            if not locked(file):
                msg = f"{database}: another process serves the runs in this store; stop it first"
                raise StorageError(msg)
            yield
    except OSError as error:
        if error.filename != str(path):
            raise
        msg = f"{path}: {reason(error)}; let this account read and write this file and its folder"
        raise StorageError(msg) from error


class _PostgresLeader:
    """Holds the advisory lock, and takes it again if its connection is lost and nobody took over meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database, self.leadership = database, Leadership()
        self._connection: Connection | None = None
        self._locked = False
        self._number: int | None = None
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look, name="leadership", daemon=True)

    def wait(self, waiting: Callable[[], None]) -> None:
        """Return once this process leads.

        Raises:
            StorageError: if the database is away for too long.
        """
        said, seen = False, time.monotonic()
        while not self._lock(seen):
            if self._connection is not None:
                seen = time.monotonic()
                if not said:
                    log.info("another server leads; this one waits until it ends")
                    said = True
            waiting()
            time.sleep(_WAIT)
        self._number = self._database.write(_take_over)
        self._database.fence = self._fence
        self.leadership.since = time.time()
        self._watch.start()

    def _lock(self, seen: float) -> bool:
        """Try to take the lock, on a new connection if the present one is lost; return whether this process has it.

        Raises:
            StorageError: if the database has been away for too long since `seen`, and this process does not lead.
        """
        try:
            if self._connection is None:
                self._connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if not self._locked:
                schema = self._connection.scalar(sa.select(sa.func.current_schema()))
                key = int.from_bytes(sha256(f"cloister leads {schema}".encode()).digest()[:8], "big", signed=True)
                self._locked = bool(self._connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))))
        except SQLAlchemyError as error:
            self._drop()
            if self._number is None and time.monotonic() - seen > self._database.patience:
                self._database.fail(error)
        return self._locked

    def _fence(self, connection: Connection) -> None:
        """Check, and keep so until the transaction ends, that nobody else leads."""
        self.leadership.check()
        mine = sa.select(LEADERS.c.number).where(LEADERS.c.number == self._number).with_for_update(read=True)
        if connection.scalar(mine) is None:
            self.leadership.lost.set()
            self.leadership.check()

    def _look(self) -> None:
        """Watch until somebody else leads, or the lock is lost for too long. Its old connection may hold it a while."""
        seen = time.monotonic()
        while not self._ended.wait(_LOOK):
            newest = self._newest() if self._lock(seen) or self._connection else None
            if self._locked and newest == self._number:
                seen = time.monotonic()
            elif newest not in {None, self._number} or time.monotonic() - seen > self._database.patience:
                break
        if not self._ended.is_set():
            self.leadership.lost.set()
            log.error("this server leads no longer")

    def _newest(self) -> int | None:
        """Return the number of who leads; None if the database is away."""
        assert self._connection is not None  # noqa: S101 - the caller looked
        try:
            newest: int | None = self._connection.scalar(sa.select(sa.func.max(LEADERS.c.number)))
        except SQLAlchemyError:
            self._drop()
            return None
        return newest

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.invalidate()
                self._connection.close()
        self._connection, self._locked = None, False

    def stop(self) -> None:
        """Let another server lead."""
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        if not self.leadership.lost.is_set():  # otherwise, what still tries to write must not
            self._database.fence = lambda _: None
        self._drop()


def _take_over(connection: Connection) -> int:
    """Make this process the leader; wait for transactions of the one before."""
    number: int | None = connection.scalar(sa.insert(LEADERS).values(since=time.time()).returning(LEADERS.c.number))
    connection.execute(sa.delete(LEADERS).where(LEADERS.c.number < number))
    assert number is not None  # noqa: S101 - RETURNING returns it
    return number
