"""Notice a newer roster while the server runs."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from privacy.errors import CloisterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.run.roster import Roster
    from server.settings import ServerFolder

log = logging.getLogger("cloister.roster")

_SECONDS = 0.5  # between two looks at the file


class RosterWatch:
    """Looks at the roster's file, in a thread of its own, and reports each newer roster."""

    def __init__(self, place: ServerFolder, taken: Callable[[Roster], None], version: int = 0) -> None:
        self._place, self._taken = place, taken
        self.version = version  # of the latest roster
        self.looks = 0  # how often the file has been read
        self._seen: tuple[int, int] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="roster", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            with suppress(FileNotFoundError):
                state = (self._place.folder / self._place.settings.roster).stat()
                if (now := (state.st_mtime_ns, state.st_ino)) != self._seen:
                    self._seen = now
                    self._look()
                    self.looks += 1

    def _look(self) -> None:
        try:
            roster = self._place.roster()
        except (CloisterError, OSError) as error:
            log.warning("the server goes on with roster %d: %s", self.version, error)
            return
        if roster.version > self.version:
            self.version = roster.version
            log.info("took roster %d, of %d sites", roster.version, len(roster.members))
            self._taken(roster)
        elif roster.version < self.version:
            log.warning("the server goes on with roster %d, as its file now has only %d", self.version, roster.version)
