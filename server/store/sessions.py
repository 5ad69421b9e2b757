"""People's sessions. The database holds the digest of a token, never the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from server.store.tables import SESSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.store.database import Database


@dataclass(frozen=True)
class Session:
    """A person who has signed in."""

    token: str  # SHA-256 of the token, in hex
    person: str
    key: str  # of the person's roster entry, with which they signed in
    made: float  # seconds since 1970
    ends: float


@dataclass(frozen=True)
class StoredSessions:
    """The sessions in a store."""

    database: Database

    def add(self, session: Session) -> None:
        """Keep a session."""
        values = {name: getattr(session, name) for name in ("token", "person", "key", "made", "ends")}

        def change(connection: sa.Connection) -> None:
            connection.execute(sa.delete(SESSIONS).where(SESSIONS.c.token == session.token))
            connection.execute(sa.insert(SESSIONS).values(values))

        self.database.write(change)

    def get(self, token: str) -> Session | None:
        """Return the session with this digest of its token, even one that has ended; None if there is none."""
        query = sa.select(SESSIONS).where(SESSIONS.c.token == token)
        row = self.database.read(lambda connection: connection.execute(query).one_or_none())
        return Session(*row) if row else None

    def of(self, person: str) -> list[Session]:
        """Return a person's sessions, the oldest first."""
        query = sa.select(SESSIONS).where(SESSIONS.c.person == person).order_by(SESSIONS.c.made)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [Session(*row) for row in rows]

    def revoke(self, token: str) -> bool:
        """Remove a session; return whether there was one."""
        return bool(self._remove(SESSIONS.c.token == token))

    def revoke_all(self, person: str) -> int:
        """Remove all sessions of a person; return how many there were."""
        return self._remove(SESSIONS.c.person == person)

    def keep(self, keys: Mapping[str, str]) -> int:
        """Remove the sessions of everybody but these people with these keys; return how many there were."""

        def change(connection: sa.Connection) -> int:
            found = connection.execute(sa.select(SESSIONS.c.person, SESSIONS.c.key).distinct()).all()
            left = [(person, key) for person, key in found if keys.get(person) != key]
            removed = 0
            for person, key in left:
                which = (SESSIONS.c.person == person) & (SESSIONS.c.key == key)
                removed += connection.execute(sa.delete(SESSIONS).where(which)).rowcount
            return removed

        return self.database.write(change)

    def purge(self, now: float) -> int:
        """Remove the sessions that have ended; return how many there were."""
        return self._remove(SESSIONS.c.ends <= now)

    def _remove(self, which: sa.ColumnElement[bool]) -> int:
        return self.database.write(lambda connection: connection.execute(sa.delete(SESSIONS).where(which)).rowcount)
