"""Look at a store from aside, for whoever operates it: at once, also while the database cannot be reached."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import sqlalchemy as sa

from privacy.errors import StorageError
from privacy.failures import sentence
from server.store.database import Database
from server.store.tables import RUNS

if TYPE_CHECKING:
    from server.settings import ServerFolder

_SECONDS = 5.0  # for which a look is good enough: whoever asks often shall not slow down runs
_ROOM = 64 << 20  # bytes that the disk must have left


@dataclass(frozen=True)
class StoreLook:
    """What a look at a store saw."""

    trouble: str = ""  # why it cannot be written; nothing if it can
    runs: tuple[tuple[str, int], ...] = ()  # how many have each status


class StoreWatch:
    """Looks at a store over a connection of its own, which is not made again and again when it is lost."""

    def __init__(self, place: ServerFolder) -> None:
        self._database = Database(place.settings.store.url, place.folder)
        self._database.was_there = True  # whoever only looks makes none
        self._lock, self._looked, self._seen = Lock(), float("-inf"), StoreLook()

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def look(self) -> StoreLook:
        """Return what there is to see; a look of the last seconds counts, too."""
        with self._lock:
            if time.monotonic() > self._looked + _SECONDS:
                self._seen = self._look()
                self._looked = time.monotonic()
            return self._seen

    def _look(self) -> StoreLook:
        count = sa.select(RUNS.c.status, sa.func.count()).group_by(RUNS.c.status)
        try:
            # As a transaction that writes, which needs whatever any other does.
            runs = self._database.write(
                lambda connection: [(str(status), int(runs)) for status, runs in connection.execute(count)]
            )
            file = self._database.file
            full = file is not None and shutil.disk_usage(file.parent).free < _ROOM
        except (StorageError, OSError) as error:
            return StoreLook(sentence(error), self._seen.runs)
        return StoreLook(f"{file}: its disk has less than {_ROOM >> 20} MB left; make room on it" * full, tuple(runs))
