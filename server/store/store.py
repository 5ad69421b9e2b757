"""The server's store: which runs there are, how each stands, and its record."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import sqlalchemy as sa

from privacy.errors import NotFoundError, RunError
from privacy.untrusted_text import plain, quoted
from server.store.database import Database
from server.store.leadership import leading
from server.store.records import StoredRecord
from server.store.schema import upgrade
from server.store.sealing import Sealing
from server.store.sessions import StoredSessions
from server.store.tables import EVENTS, RUNS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from sqlalchemy import ColumnElement, Row

    from privacy.run.manifest import SignedRun
    from server.settings import ServerFolder
    from server.store.leadership import Leadership

Status = Literal["waiting", "running", "finished", "failed", "stopped"]
STATUSES: tuple[Status, ...] = get_args(Status)
ENDED: tuple[Status, ...] = ("finished", "failed", "stopped")
MOST_WAITING = 200
"""How many runs of one person may wait."""

_NAMED = 5  # runs in a message
_SHOWN = 8  # characters of a digest that people are shown
_POLL = 0.5  # seconds between looks for what other processes write
_LONGEST = 2000  # characters of a reason


@dataclass(frozen=True)
class StoredRun:
    """A run, as it stands."""

    digest: str
    name: str
    by: str  # who signed it
    submitted: float  # seconds since 1970, as the other times
    status: Status
    reason: str  # why it failed or was stopped
    started: float | None
    ended: float | None
    rounds: int  # of its manifest
    released: int  # rounds that released a sum
    behind: tuple[str, ...]  # once it has ended: sites that lack its last model, and get it when they are online


_STANDING = [RUNS.c[each.name] for each in fields(StoredRun)]  # without the document, which may be large


class Store:
    """The runs of one server. Threads may share it."""

    def __init__(self, database: Database, place: ServerFolder) -> None:
        """Take a database whose tables are up to date."""
        self.database, self._folder = database, place.folder
        self._sealing = Sealing(place.folder)
        self._changed, self._changes = threading.Condition(), 0
        self.sessions = StoredSessions(database)

    @classmethod
    def open(cls, place: ServerFolder) -> Self:
        """Open the store that `consortium.toml` names; make it or bring its tables up to date, if need be.

        Raises:
            ConfigError: if the settings name no database that can be used.
            StorageError: if it cannot be reached, read or written, or is damaged or of a newer version.
        """
        database = Database(place.settings.store.url, place.folder)
        try:
            upgrade(database)
        except BaseException:
            database.close()
            raise
        database.be_patient()
        return cls(database, place)

    @staticmethod
    def exists(place: ServerFolder) -> bool:
        """Whether there is a database; for PostgreSQL, whether one is named."""
        database = Database(place.settings.store.url, place.folder)
        return database.file is None or database.file.exists()

    @property
    def changes(self) -> int:
        """How often this process has changed what `run`, `runs` and `events` return."""
        return self._changes

    def close(self) -> None:
        """Close the store."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lead(self, waiting: Callable[[], None] = lambda: None) -> AbstractContextManager[Leadership]:
        """Lead: of all servers on this store, only the one that does may serve runs.

        Args:
            waiting: called about once a second while another server on the same PostgreSQL leads; may raise to give up.

        Returns:
            A context manager, which yields once this process leads.

        Raises:
            StorageError: if another process leads on the same SQLite file, or the database cannot be used.
        """
        return leading(self.database, waiting)

    # --- Runs -------------------------------------------------------------------------------------------------------

    def submit(self, run: SignedRun) -> StoredRun:
        """Keep a run of whoever signed it, which then waits for its turn. The same run again changes nothing.

        Returns:
            How it stands.

        Raises:
            RunError: if too many runs of this person wait: the queue looks at all that do; or if it is here as somebody
                else signed it: what they sign is theirs, and sites ask who did.
        """
        settings = run.manifest.settings
        values = {
            "digest": run.digest, "name": settings.name, "document": run.document, "by": run.signer.name,
            "submitted": time.time(), "status": "waiting", "reason": b"", "rounds": settings.rounds, "released": 0,
        }  # fmt: skip

        def change(connection: sa.Connection) -> None:
            by = connection.scalar(sa.select(RUNS.c.by).where(RUNS.c.digest == run.digest))
            if by is not None:
                if by != values["by"]:
                    msg = (
                        f"this very run is here as {by} signed it, and it is theirs; {values['by']} signs the run's "
                        "file again (cloister sign), which makes a run of its own, and submits that"
                    )
                    raise RunError(msg)
                return
            theirs = (RUNS.c.status == "waiting") & (RUNS.c.by == values["by"])
            if (connection.scalar(sa.select(sa.func.count()).where(theirs)) or 0) >= MOST_WAITING:
                msg = f"{values['by']} has {MOST_WAITING} runs that wait; stop some of these first, or let them run"
                raise RunError(msg)
            connection.execute(sa.insert(RUNS).values(values))

        self.database.write(change)
        self._tell()
        (stored,) = self._select(RUNS.c.digest == run.digest)
        return stored

    def run(self, name: str) -> StoredRun:
        """Return the run with this digest, or whose digest or name alone starts like this.

        A name that looks like a part of a digest does not hide the run with that digest.

        Raises:
            NotFoundError: naming what there is, if no run or several do.
        """
        digest = _begins(RUNS.c.digest, name)
        exactly = (RUNS.c.name == name) | (digest if len(name) >= _SHOWN else RUNS.c.digest == name)
        found: list[StoredRun] = []
        for which in (exactly, digest | _begins(RUNS.c.name, name)):
            found = self._select(which, limit=_NAMED) if name else []
            if len(found) == 1:
                return found[0]
            if found:
                break
        many, listed = bool(found), found or self.runs(limit=_NAMED)
        known = ", ".join(f"{run.name} {run.digest[:8]}" for run in listed)
        how = "give more of its digest" if many else "name one of these"
        msg = f"{'several runs are called' if many else 'there is no run'} {quoted(name)}"
        raise NotFoundError(f"{msg}; {how}: {known}" if known else f"{msg}; submit it first")

    def document(self, digest: str) -> bytes:
        """Return the run with this digest as it was signed, in wire form.

        Raises:
            NotFoundError: if there is none.
        """
        query = sa.select(RUNS.c.document).where(RUNS.c.digest == digest)
        document: bytes | None = self.database.read(lambda connection: connection.scalar(query))
        if document is None:
            msg = f"there is no run {quoted(digest)}; submit it first"
            raise NotFoundError(msg)
        return document

    def newest(self) -> StoredRun:
        """Return the run that was submitted last.

        Raises:
            NotFoundError: if there is none.
        """
        if found := self.runs(limit=1):
            return found[0]
        msg = f"{self.database.place}: there is no run yet; submit one first"
        raise NotFoundError(msg)

    def runs(self, status: Status | None = None, before: str | None = None, limit: int = 100) -> list[StoredRun]:
        """Return runs, the newest first.

        Args:
            status: only those that stand so.
            before: only those that were submitted before the run with this digest.
            limit: how many at most.
        """
        which = sa.true() if status is None else RUNS.c.status == status
        if before is not None:
            which &= RUNS.c.number < sa.select(RUNS.c.number).where(RUNS.c.digest == before).scalar_subquery()
        return self._select(which, limit=limit)

    def next_waiting(self) -> StoredRun | None:
        """Return the waiting run that was submitted first; None if no run waits."""
        found = self._select(RUNS.c.status == "waiting", limit=1, oldest=True)
        return found[0] if found else None

    def mark(self, digest: str, status: Status, reason: str = "") -> None:
        """Note how a run stands, and why. One that has ended meanwhile is not stopped any more."""
        text = plain(reason, _LONGEST).encode()
        values: dict[str, Any] = {
            "status": status, "reason": self._sealing.seal("runs", (digest,), text, "reason"),
        }  # fmt: skip
        now = time.time()
        if status == "running":
            values |= {"started": sa.func.coalesce(RUNS.c.started, now), "ended": None}
        else:
            values |= {"ended": None if status == "waiting" else now}
        which = RUNS.c.digest == digest
        if status == "stopped":
            which &= RUNS.c.status.in_(("waiting", "running"))
        change = sa.update(RUNS).where(which).values(values)
        self.database.write(lambda connection: connection.execute(change))
        self._tell()

    def mark_behind(self, digest: str, sites: Sequence[str]) -> None:
        """Note which sites lack a run's last model, or may lack it until the run has ended."""
        change = sa.update(RUNS).where(RUNS.c.digest == digest).values(behind=",".join(sites))
        self.database.write(lambda connection: connection.execute(change))
        self._tell()

    def sites_behind(self) -> dict[str, tuple[str, ...]]:
        """Return which sites lack the last model of a run that has ended, by the run's digest, the newest first."""
        which = (RUNS.c.behind != "") & RUNS.c.status.in_(ENDED)
        query = sa.select(RUNS.c.digest, RUNS.c.behind).where(which).order_by(RUNS.c.number.desc())
        rows: Sequence[Row[str, str]] = self.database.read(lambda connection: connection.execute(query).all())
        return {digest: tuple(behind.split(",")) for digest, behind in rows}

    def _select(self, which: ColumnElement[bool], limit: int = 1, *, oldest: bool = False) -> list[StoredRun]:
        order = RUNS.c.number if oldest else RUNS.c.number.desc()
        query = sa.select(*_STANDING).where(which).order_by(order).limit(limit)
        rows = self.database.read(lambda connection: connection.execute(query).mappings().all())
        return [self._read(dict(row)) for row in rows]

    def _read(self, row: dict[str, Any]) -> StoredRun:
        reason = self._sealing.open("runs", (row["digest"],), row["reason"], "reason").decode()
        behind = tuple(filter(None, row["behind"].split(","))) if row["status"] in ENDED else ()
        values: dict[str, Any] = row | {"reason": reason, "behind": behind}
        return StoredRun(**values)

    # --- Records ----------------------------------------------------------------------------------------------------

    def record(self, digest: str) -> StoredRecord:
        """Return the record of a run that was submitted."""
        return StoredRecord(self.database, self._sealing, digest, self._folder, self._tell)

    def _tell(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def events(self, digest: str, after: int = 0, limit: int = 1000) -> list[tuple[int, dict[str, Any]]]:
        """Return a run's events with their numbers, from 1, the oldest first.

        Args:
            digest: the run.
            after: only those with higher numbers.
            limit: how many at most.
        """
        query = (
            sa.select(EVENTS.c.number, EVENTS.c.value)
            .where((EVENTS.c.run == digest) & (EVENTS.c.number > after))
            .order_by(EVENTS.c.number)
            .limit(limit)
        )
        rows: Sequence[Row[int, bytes]] = self.database.read(lambda connection: connection.execute(query).all())
        try:
            return [
                (number, json.loads(self._sealing.open("events", (digest, number), value))) for number, value in rows
            ]
        except ValueError as error:
            raise self.database.damaged() from error

    def wait_for_events(self, digest: str, after: int, seconds: float) -> bool:
        """Wait until a run has an event with a higher number than `after`; return whether it has."""
        query = sa.select(sa.func.max(EVENTS.c.number)).where(EVENTS.c.run == digest)
        deadline = time.monotonic() + seconds
        while True:
            seen = self._changes
            last = self.database.read(lambda connection: connection.scalar(query)) or 0
            left = deadline - time.monotonic()
            if last > after or left <= 0:
                return last > after
            self.wait_for_change(seen, min(left, _POLL))

    def wait_for_change(self, changes: int, seconds: float) -> None:
        """Wait until this process has made another number of changes than this, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != changes, seconds)


def _begins(column: sa.Column[str], text: str) -> sa.ColumnElement[bool]:
    """Whether a text begins so. For SQLite's LIKE, unlike PostgreSQL's, capital letters are the same as others."""
    return sa.func.substr(column, 1, len(text)) == text
