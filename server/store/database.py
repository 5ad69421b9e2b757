"""The connection to the store's database, SQLite or PostgreSQL: transactions, their retries, and errors in sentences.

SQLite keeps a write-ahead log, and syncs it with every transaction. A transaction is a function of a connection; when a
connection is lost, it runs again as a whole, so a function must tell whether it had been committed after all.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from privacy.errors import ConfigError, StorageError
from privacy.failpoints import failpoint
from privacy.failures import reason
from privacy.files import created, make_folder, naming, sync_folder, temporary
from privacy.untrusted_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy import URL, Connection, Engine

T = TypeVar("T")

PASSWORD_VARIABLE = "CLOISTER_STORE_PASSWORD"  # noqa: S105 - its name
_CONNECT = 10  # seconds
_BUSY = 30.0  # seconds that SQLite waits for another process
_PATIENCE = 60.0  # seconds for which a lost connection is made again
_PAUSE = 0.5
_PAGE = 1 << 14  # bytes of a page of a new SQLite file: sums are large
_HEAD = 100  # bytes with which an SQLite file begins
_READS = "cloister_reads"

_DAMAGED = "this database is damaged; restore it from the server's backup, or sign its runs again"
_SQLITE = {
    sqlite3.SQLITE_FULL: "the disk is full; make room on it",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_READONLY: "it cannot be written; let this account write it and its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; let this account read and write it and its folder",
    sqlite3.SQLITE_PERM: "it cannot be opened; let this account read and write it and its folder",
    sqlite3.SQLITE_IOERR_SHORT_READ: _DAMAGED,  # a part of a file is gone
    sqlite3.SQLITE_IOERR: "its disk fails; check the disk, and the room on it",
    sqlite3.SQLITE_BUSY: "another process uses it for too long; end that process",
}
_LOST = ("08", "57P", "53300", "40001", "40P01", "23505", "25006")
"""SQLSTATEs, or how they start, after which another try may succeed: lost connections, conflicts with others, and a
standby that is not promoted yet."""

_MENDED = {
    "password|authentication (failed|method)": (
        f"set the environment variable {PASSWORD_VARIABLE} to the password of [store] url's user"
    ),
    'database ".*" does not exist': "create this database, or correct its name in [store] url",
    'role ".*" (does not exist|is not permitted)': "let [store] url's user log in, or name another",
    "permission denied|no schema has been selected": "let [store] url's user own this database, or a schema of it",
    "pg_hba|rejects connection": "let this machine and user in, in PostgreSQL's pg_hba.conf",
    "does not support SSL|sslmode|certificate|private key": "correct sslmode and the certificates in [store] url",
}
"""What somebody has to mend, by what PostgreSQL says: before it lets a client in, it gives no SQLSTATE. One that speaks
another language is taken to be away."""


class Database:
    """The store's database."""

    def __init__(self, url: str, folder: Path) -> None:
        """Connect to nothing yet.

        Args:
            url: as in `[store]`.
            folder: the server's folder, to which the path of an SQLite file is relative.

        Raises:
            ConfigError: if the URL is not one of SQLite or PostgreSQL, or contains a password.
        """
        parsed = _parsed(url)
        self.file: Path | None = None
        self.was_there = False  # then a missing file is not made anew
        if parsed.get_backend_name() == "sqlite":
            self.file = folder / (parsed.database or "")
            self.place, self.engine = str(self.file), _sqlite(self.file, lambda: not self.was_there)
        else:
            self.place, self.engine = parsed.render_as_string(), _postgres(parsed)
        self.patience = 0.0  # seconds for which a lost connection is made again
        self.fence: Callable[[Connection], None] = lambda _: None
        """Called first in every transaction that writes."""

    def be_patient(self) -> None:
        """From now on, make a lost connection again: the database was there."""
        self.patience, self.was_there = _PATIENCE, True

    @property
    def is_postgres(self) -> bool:
        """Whether the database is PostgreSQL: other machines may use it, too."""
        return self.file is None

    def read(self, query: Callable[[Connection], T]) -> T:
        """Return what a function reads, in one transaction.

        Raises:
            StorageError: if the database cannot be read.
        """
        return self._transact(query, writes=False)

    def write(self, change: Callable[[Connection], T]) -> T:
        """Run a function in a transaction that is on disk when this returns.

        Raises:
            StorageError: if the database cannot be written; then nothing has changed.
        """
        return self._transact(change, writes=True)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _transact(self, run: Callable[[Connection], T], *, writes: bool) -> T:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with self.engine.connect().execution_options(**{_READS: not writes}) as connection, connection.begin():
                    if writes:
                        self.fence(connection)
                    result = run(connection)
                    if writes:
                        failpoint("store-written")
                if writes:
                    failpoint("store-committed")
            except SQLAlchemyError as error:
                if not (isinstance(error, DBAPIError) and _may_pass(error)) or time.monotonic() > deadline:
                    self.fail(error)
            else:
                return result
            time.sleep(_PAUSE)

    def damaged(self) -> StorageError:
        """Return what to raise if what was read cannot have been written."""
        return StorageError(f"{self.place}: {_DAMAGED}")

    def fail(self, error: SQLAlchemyError) -> NoReturn:
        """Raise a database's error as a sentence."""
        cause = getattr(error, "orig", None) or error
        if isinstance(error, PoolTimeout):
            msg = f"{self.place}: too many requests use this database at once; try again"
        elif isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorcode", 0)
            known = _SQLITE.get(code) or _SQLITE.get(code & 0xFF)
            msg = f"{self.place}: {known or f'SQLite fails ({cause}); check the file and its disk'}"
        elif self.is_postgres:
            said = plain((str(cause).strip() or type(cause).__name__).splitlines()[0], 300)
            advice = _to_mend(cause) or "check that PostgreSQL runs and has room, and the network"
            msg = f"{self.place}: PostgreSQL cannot be used ({said}); {advice}"
        else:
            msg = f"{self.place}: {type(cause).__name__}; check the file and its disk"
        raise StorageError(msg) from error


def is_away(error: StorageError) -> bool:
    """Whether a PostgreSQL cannot be used now, and may be later by itself; not if somebody has to mend what it says."""
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and _may_pass(cause) and not _to_mend(cause.orig)


def _to_mend(cause: BaseException | None) -> str:
    """Return what somebody has to mend before a PostgreSQL can be used; nothing if it may pass."""
    return next((advice for said, advice in _MENDED.items() if re.search(said, str(cause))), "")


def _may_pass(error: DBAPIError) -> bool:
    """Whether another try may succeed: the connection was lost, or cannot be made now."""
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, sqlite3.Error):
        return False
    if state:
        return error.connection_invalidated or str(state).startswith(_LOST)
    return error.connection_invalidated or type(error.orig).__name__ == "OperationalError"


def _parsed(url: str) -> URL:
    parsed = sa.URL.create("none")
    try:
        parsed = sa.make_url(url)
        known = parsed.get_backend_name() == "postgresql" or (parsed.drivername == "sqlite" and bool(parsed.database))
    except (ArgumentError, ValueError):
        known = False
    if not known or parsed.query.keys() - {"sslmode", "sslrootcert", "sslcert", "sslkey", "application_name"}:
        msg = (
            "url in [store] names no database that Cloister can use; write sqlite:///store.sqlite, or "
            "postgresql+psycopg://USER@HOST/DATABASE"
        )
        raise ConfigError(msg)
    if parsed.password is not None:
        msg = (
            "url in [store] contains a password; remove it, and set the environment variable "
            f"{PASSWORD_VARIABLE} instead"
        )
        raise ConfigError(msg)
    return parsed


def _sqlite(file: Path, may_make: Callable[[], bool]) -> Engine:
    def connect() -> sqlite3.Connection:
        try:
            make_folder(file.parent)
            _check_whole(file, may_be_new=may_make())
            if not file.exists():
                _create(file)
        except OSError as error:
            msg = f"{file}: {reason(error)}; let this account read and write this file and its folder"
            raise StorageError(msg) from error
        connection = sqlite3.connect(file, timeout=_BUSY, isolation_level=None, check_same_thread=False)
        try:
            connection.executescript(
                f"PRAGMA page_size={_PAGE}; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; "
                "PRAGMA foreign_keys=ON; PRAGMA secure_delete=ON"
            )
        except BaseException:
            connection.close()
            raise
        return connection

    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(file)), creator=connect, hide_parameters=True, max_overflow=32
    )

    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(_READS)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")  # it could not turn from one into the other

    event.listen(engine, "begin", begin)
    return engine


def _create(file: Path) -> None:
    """Make a database without tables, whole at once: an empty file is one that has lost its runs.

    A file that is there is never opened: to close it would end the locks of this process's other connections, and the
    next process that looks at the store would take the log for its own, and remove it.

    Raises:
        OSError: naming the file, if it cannot be made.
    """
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(f"PRAGMA page_size={_PAGE}; PRAGMA user_version=0")
        empty = connection.serialize()
    beside = temporary(file)
    with created(beside, file) as new:
        new.write(empty)
        new.flush()
        os.fsync(new.fileno())
    try:
        with naming(file), suppress(FileExistsError):  # another process was faster
            os.link(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(file.parent)


def _check_whole(file: Path, *, may_be_new: bool) -> None:
    """Check that a file that had runs is there: SQLite would take none, or an empty one, for new, and delete its log.

    Raises:
        StorageError: if it is not.
        OSError: if nobody can look.
    """
    log = file.with_name(f"{file.name}-wal")
    if file.exists():
        lost = "is empty" if file.stat().st_size < _HEAD else ""
    else:
        lost = f"is missing, though its log {log.name} is there" if log.exists() else "" if may_be_new else "is missing"
    if lost:
        msg = f"{file} {lost}; restore it from the server's backup, or, if it had no runs, remove {file.name}*"
        raise StorageError(msg)


def _postgres(url: URL) -> Engine:
    password = os.environ.get(PASSWORD_VARIABLE)
    arguments: dict[str, Any] = {
        "connect_timeout": _CONNECT,
        # Both sides notice within 15 s that the other's machine has gone.
        "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 5, "tcp_user_timeout": 15_000,
        "options": "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=5",
    }  # fmt: skip
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg", password=password),
            connect_args=arguments, hide_parameters=True, pool_pre_ping=True, pool_size=4, max_overflow=8,
        )  # fmt: skip
    except ImportError as error:
        msg = "url in [store] needs the driver of PostgreSQL; install it: pip install 'cloister[sql]'"
        raise ConfigError(msg) from error
