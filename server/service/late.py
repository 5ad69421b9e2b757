"""Runs that have ended, and whose last model some sites lack: these get it once they are online again.

A site that was away, or whose answer was lost, misses nothing for good: the server keeps the run's sums. Deliveries
take no slot of the queue. A site that is online and still does not answer is asked again after ever longer pauses.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError, RefusedError
from privacy.failures import sentence
from privacy.run.manifest import open_run
from server.app import bring_up_to_date
from server.service.running import Running
from strategies.interruption import RunInterrupted

if TYPE_CHECKING:
    from collections.abc import Container
    from collections.abc import Set as AbstractSet

    from server.service.agents import Agents
    from server.settings import ServerFolder
    from server.store.store import Store, StoredRun
    from strategies.shared import Shared

log = logging.getLogger("cloister.service")

_FIRST_PAUSE, _DOUBLED = 10.0, 8  # seconds until sites that did not answer are asked again; how often it doubles
_AT_ONCE = 2  # deliveries


@dataclass
class _Tried:
    """When sites of a run were last asked, how often, and which of them were online."""

    moment: float
    times: int
    online: AbstractSet[str]


class LateSites:
    """Delivers runs' last sums to sites that lack them, each run in a thread of its own."""

    def __init__(self, place: ServerFolder, store: Store, agents: Agents, shared: Shared) -> None:
        self._place, self._store, self._agents, self._shared = place, store, agents, shared
        self._tried = dict[str, _Tried]()
        self._open = dict[str, Running]()

    def __contains__(self, digest: str) -> bool:
        """Whether sums of this run are being delivered."""
        return digest in self._open

    @property
    def open(self) -> list[Running]:
        """The deliveries that go on."""
        return list(self._open.values())

    def look(self, busy: Container[str]) -> None:
        """Begin the deliveries that are due.

        Args:
            busy: the runs that go on.

        Raises:
            StorageError: if the store cannot be read.
        """
        self._open = {digest: one for digest, one in self._open.items() if not one.over}
        online = self._agents.online()
        for digest, sites in self._store.sites_behind().items() if online else ():
            there = online & set(sites)
            if len(self._open) < _AT_ONCE and digest not in busy and self._is_due(digest, there):
                tried, stored = self._tried.get(digest), self._store.run(digest)
                again = tried.times + 1 if tried and there <= tried.online else 0
                self._tried[digest] = _Tried(time.monotonic(), again, there)
                one = Running(digest, f"{stored.name}-{digest[:8]}", self._deliver)
                one.start()
                self._open[digest] = one

    def _is_due(self, digest: str, there: AbstractSet[str]) -> bool:
        if digest in self._open or not there:
            return False
        if (tried := self._tried.get(digest)) is None or there - tried.online:
            return True
        tried.online &= there  # one that comes back is asked at once
        return time.monotonic() - tried.moment > _FIRST_PAUSE * (1 << min(tried.times, _DOUBLED))

    def _deliver(self, one: Running) -> None:
        grid = None
        try:
            stored, roster = self._store.run(one.digest), self._agents.roster
            assert roster is not None  # noqa: S101 - somebody is online
            run = open_run(self._store.document(one.digest), roster)
            run.manifest.check_valid(time.time())
            grid = self._agents.grid(run, roster, one.interruption)
            behind = bring_up_to_date(
                self._place, self._store, run, grid, roster, self._shared, interruption=one.interruption
            )
            self._say(stored, behind)
        except RunInterrupted:
            pass  # the next process goes on
        except (AuthenticityError, RefusedError) as error:  # sites would say the same
            log.warning("%s: sites that lack its last model do not get it any more: %s", one.label, sentence(error))
            self._store.mark_behind(one.digest, ())
        except BaseException as error:
            log.warning("%s: its last model is not at all sites yet: %s", one.label, sentence(error))
            log.debug("%s", one.label, exc_info=error)
        finally:
            if grid:
                grid.close()

    def _say(self, stored: StoredRun, behind: list[str]) -> None:
        if came := sorted(set(stored.behind) - set(behind)):
            log.info("%s-%s: its last model is at %s now", stored.name, stored.digest[:8], ", ".join(came))
