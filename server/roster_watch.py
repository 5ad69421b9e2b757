"""Notice a newer roster while the server runs."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from privacy.errors import CloisterError
from privacy.failures import sentence
from privacy.run.roster import roster_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.run.roster import Roster
    from server.hub.hub import Hub
    from server.settings import ServerFolder
    from strategies.key_turns import KeyTurns

log = logging.getLogger("cloister.roster")

_SECONDS = 0.5  # between two looks at the file


class NewRosters:
    """Hands a newer roster to the hub at once, for who may call; to the agents and each run between two rounds."""

    def __init__(self, hub: Hub, roster: Roster, turns: KeyTurns) -> None:
        """Take the hub, the roster that it has, and what keeps runs out of rounds while agents take a newer one."""
        self._hub, self._turns, self._lock = hub, turns, threading.Lock()
        self._newest, self._offered = (roster, b""), roster.version

    @property
    def newest(self) -> Roster:
        """The newest roster."""
        with self._lock:
            return self._newest[0]

    def take(self, roster: Roster, roster_file: bytes) -> None:
        """Serve its members, and nobody else, from now on."""
        with self._lock:
            self._newest = roster, roster_file
        self._hub.admit(roster)

    def after(self, version: int, check: Callable[[], None] = lambda: None) -> Roster | None:
        """Return the newest roster, offered to the agents; None if it is not newer than `version`.

        Args:
            version: of the roster with which a run goes on.
            check: called while other runs are in rounds; whatever it raises ends the wait.
        """
        newest = self.newest
        if newest.version <= version:
            return None
        if newest.version > self._offered:
            with self._turns.alone(check):
                self._offer()
        return newest

    def offer(self) -> None:
        """Offer the newest roster to the agents, unless a run is in a round: it does so itself, before the next one."""
        if self.newest.version > self._offered:
            with self._turns.now_or_never() as now:
                if now:
                    self._offer()

    def _offer(self) -> None:
        with self._lock:
            roster, roster_file = self._newest
        if roster.version > self._offered:
            self._hub.offer(roster.version, roster_file)
            self._offered = roster.version


class RosterWatch:
    """Looks at the roster's file, in a thread of its own, and reports each newer roster."""

    def __init__(self, place: ServerFolder, taken: Callable[[Roster, bytes], None], version: int = 0) -> None:
        self._place, self._taken = place, taken
        self.version = version  # of the latest roster
        self._seen: tuple[int, int] | None = None
        self._digest: str | None = None  # of the latest roster
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="roster", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SECONDS):
            try:
                self.look()
            except (CloisterError, OSError) as error:  # from whoever takes it
                log.warning("roster %d is not served: %s", self.version, sentence(error))

    def look(self) -> None:
        """Read the file, if it has changed since the last look."""
        try:
            state = (self._place.folder / self._place.settings.roster).stat()
        except OSError:  # not there yet, or its disk is away
            return
        if (now := (state.st_mtime_ns, state.st_ino)) != self._seen:
            self._seen = now
            self._look()

    def _look(self) -> None:
        try:
            roster, data = self._place.signed_roster()
        except (CloisterError, OSError) as error:
            log.warning("the server goes on with roster %d: %s", self.version, error)
            return
        newer, before, digest = roster.version > self.version, self._digest, roster_digest(data)
        if newer or (before is None and roster.version == self.version):
            self._digest = digest
        if newer:
            self.version = roster.version
            log.info("took roster %d, of %d sites", roster.version, len(roster.members))
            self._taken(roster, data)
        elif roster.version < self.version:
            log.warning("the server goes on with roster %d, as its file now has only %d", self.version, roster.version)
        elif before not in {None, digest}:
            log.warning("the authority signed two rosters %d, with the digests %s and %s: the server goes on with the "
                        "first, and sites refuse the second", self.version, before, digest)  # fmt: skip
