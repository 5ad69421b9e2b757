"""The runs of one server: submitted, waiting for their turn, going on, and ended.

    waiting    its turn comes in the order of submission, as soon as enough of its sites are online; runs whose sites
               are not are passed over, and fail once they have waited for `wait_hours` of `[service]`
    running    up to `runs_at_once` at a time, and those that are stopped and still deliver their last sum; also if the
               process ends: the next one goes on with it first
    finished, failed, stopped    `retry` has a failed or stopped run wait again; it goes on where it ended

If the store or a disk fails, a run pauses, and is tried again by itself. Threads may share a service.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, RunError, StorageError, VaultError
from privacy.failures import sentence
from privacy.log_fields import about
from privacy.run.manifest import open_run
from privacy.untrusted_text import plain
from server.app import serve_run
from server.service.admission import admitted
from server.service.late import LateSites
from server.service.running import Running
from strategies.event_log import EventLog
from strategies.interruption import RunInterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster
    from server.service.agents import Agents
    from server.settings import ServerFolder
    from server.store.leadership import Leadership
    from server.store.store import Status, Store, StoredRun
    from strategies.shared import Shared

log = logging.getLogger("cloister.service")

_TICK = 0.5  # seconds between looks at the queue, unless somebody submits a run here, or one ends
_END_SECONDS = 4.0  # for runs to deal with the reply in hand when the process ends
_PAGE = 100


@dataclass(frozen=True)
class ServiceStatus:
    """How a server stands."""

    started: float  # the process; seconds since 1970, as the other times
    leading_since: float
    roster: int | None  # its version; None before the first site has joined
    members: tuple[str, ...]
    online: tuple[str, ...]
    running: tuple[str, ...]  # digests of the runs that go on
    paused: dict[str, str]  # by digest, why a run cannot go on at the moment


@dataclass
class _Wait:
    """A run whose turn it is, and whose sites are not there."""

    run: SignedRun
    roster: int  # the version under which it was opened
    since: float = field(default_factory=time.monotonic)
    says: str = ""  # what it waits for


class Service:
    """Takes runs, and serves them."""

    def __init__(
        self, place: ServerFolder, store: Store, agents: Agents, shared: Shared, leadership: Leadership,
        only: str | None = None,
    ) -> None:  # fmt: skip
        """Take what this process has opened.

        Args:
            place: the server's folder.
            store: where the runs are kept.
            agents: reaches the sites.
            shared: what all runs share.
            leadership: that this process leads; the queue ends once it does not.
            only: the one run to serve, at once, whatever else waits; None for all of the queue.
        """
        self.place, self.store, self.new_epoch = place, store, set[str]()
        self._agents, self._shared, self._leadership, self._only = agents, shared, leadership, only
        self._started = time.time()
        self._turn = threading.RLock()  # for whoever changes how a run stands
        self._running, self._waits = dict[str, Running](), dict[str, _Wait]()
        self._late = LateSites(place, store, agents, shared)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve_queue, name="queue", daemon=True)

    # --- For people --------------------------------------------------------------------------------------------------

    def roster(self) -> Roster | None:
        """Return the newest roster; None before the first site has joined."""
        return self._agents.roster

    def submit(self, document: bytes, by: str) -> StoredRun:
        """Have a signed run wait for its turn. The same run again changes nothing; return how it stands.

        The run belongs to who signed it, whoever submits it.

        Raises:
            AuthenticityError: if nobody in the roster signed it.
            RefusedError: if whoever did may not sign runs, or it has expired.
            MalformedError: if it is not a manifest of this version.
            RunError: if it cannot run, because the roster lacks too many of its sites or is older than the run.
        """
        if (roster := self.roster()) is None:
            msg = "this consortium has no member yet, so no run can be submitted; invite sites first"
            raise RunError(msg)
        run = admitted(document, roster)
        with self._turn:
            stored = self.store.submit(run)
        if by != stored.by:
            log.info("%s of %s was submitted by %s", _label(stored), stored.by, plain(by))
        self._wake.set()
        return stored

    def stop(self, name: str, by: str, reason: str = "") -> StoredRun:
        """End a run that waits or goes on, at the latest with its open round; every site keeps its last model.

        Raises:
            NotFoundError: if there is no such run.
            RunError: if it has ended already.
        """
        with self._turn:
            stored = self.store.run(name)
            if stored.status == "stopped":
                return stored
            text = plain(f"stopped by {by}" + (f": {reason}" if reason else ""))
            self.store.mark(stored.digest, "stopped", text)  # before it has ended: also if this process is killed
            stored = self.store.run(stored.digest)
            if stored.status != "stopped":
                msg = f"{stored.name} {stored.digest[:8]} has already {stored.status}, so it cannot be stopped"
                raise RunError(msg)
            if running := self._running.get(stored.digest):
                running.interruption.stop(text)
            if running is None or running.over:
                self._forget(stored)
                self._note(stored, "stopped", text)
            return self.store.run(stored.digest)

    def retry(self, name: str, by: str) -> StoredRun:
        """Have a run that failed or was stopped wait for its turn again: it goes on where it ended.

        Raises:
            NotFoundError: if there is no such run.
            RunError: if it has not ended, or not so.
        """
        with self._turn:
            stored = self.store.run(name)
            if stored.status in {"waiting", "running"}:
                return stored
            if stored.status == "finished":
                msg = f"{stored.name} {stored.digest[:8]} has finished; to train again, sign a new run"
                raise RunError(msg)
            if (running := self._running.get(stored.digest)) and not running.join(1.0):
                msg = f"{stored.name} {stored.digest[:8]} is about to end; try again in a moment"
                raise RunError(msg)
            self._forget(stored)
            self.store.mark(stored.digest, "waiting")
            log.info("%s is tried again, by %s", _label(stored), plain(by))
            self._wake.set()
            return self.store.run(stored.digest)

    def status(self) -> ServiceStatus:
        """Return how this server stands. Does not wait for the store."""
        roster, running = self.roster(), self._running.copy()  # at once, whatever others wait for
        return ServiceStatus(
            started=self._started,
            leading_since=self._leadership.since,
            roster=roster.version if roster else None,
            members=tuple(member.site for member in roster.members) if roster else (),
            online=tuple(sorted(self._agents.online())),
            running=tuple(running),
            paused={digest: sentence(one.error) for digest, one in running.items() if one.error},
        )

    # --- For the process ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve the queue: first the runs with which an earlier process has not ended."""
        self._thread.start()

    def outcome(self, seconds: float) -> StoredRun | None:
        """Wait until the only run has ended, at most so long; return it, or None if it has not.

        Raises:
            BaseException: what prevented the run, if that is not the run's own failure.
        """
        assert self._only is not None  # noqa: S101 - the caller named it
        self._thread.join(seconds)
        if self._thread.is_alive():
            return None
        if (running := self._running.get(self._only)) and running.error:
            raise running.error
        self._leadership.check()
        return self.store.run(self._only)

    def end(self) -> None:
        """Begin no round any more, deal with the replies in hand, and leave the rest to the next process."""
        self._ending.set()
        self._wake.set()
        with self._turn:
            running = [*self._running.values(), *self._late.open]
        for one in running:
            one.interruption.end()
        deadline = time.monotonic() + _END_SECONDS
        for one in running:
            one.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)

    @property
    def leads(self) -> bool:
        """Whether this process still serves the queue."""
        return not self._leadership.lost.is_set()

    def check_leading(self) -> None:
        """Check that this process still leads.

        Raises:
            StorageError: if another server leads, or the database is lost.
        """
        self._leadership.check()

    # --- The queue ---------------------------------------------------------------------------------------------------

    def _serve_queue(self) -> None:
        said = ""
        while not self._ending.is_set() and self.leads:
            try:
                self._agents.offer_roster()
                with self._turn:
                    self._collect()
                    if self._only and self._only in self._running and self._running[self._only].error:
                        return
                    self._begin_runs()
                    if not self._only:
                        self._late.look(self._running)
                    if self._only and not self._running and self.store.run(self._only).status != "waiting":
                        return
                said = ""
            except Exception as error:  # noqa: BLE001 - the store may be back soon, and nothing else ends the queue
                if said != (said := sentence(error)):
                    log.warning("the queue waits: %s", said)
            self._wake.wait(_TICK)
            self._wake.clear()
        with self._turn:
            for one in self._running.values():
                one.interruption.end()

    def _collect(self) -> None:
        """Forget the runs that have ended; those that only paused stay."""
        for digest, one in list(self._running.items()):
            if one.over and one.error is None:
                del self._running[digest]

    def _begin_runs(self) -> None:
        for paused in [one for one in self._running.values() if one.error and not one.waits]:
            stored = self.store.run(paused.digest)
            if stored.status == "running":
                self._begin(stored, tries=paused.tries + 1)
            else:  # stopped, and then the store failed
                self._note(stored, stored.status, stored.reason)
                self._forget(stored)
        going_on = [one for one in self._running.values() if not one.interruption.reason]  # others only deliver a sum
        room = self.place.settings.service.runs_at_once - len(going_on)
        for stored in self._next() if room > 0 else ():
            if stored.digest not in self._running and (stored.status == "running" or self._may_begin(stored)):
                self._begin(stored)
                room -= 1
            if room <= 0:
                return

    def _next(self) -> Iterator[StoredRun]:
        """Yield runs in the order in which they may begin: those of an earlier process, then those that wait."""
        if self._only:
            yield self.store.run(self._only)
            return
        statuses: tuple[Status, ...] = ("running", "waiting")
        for status in statuses:
            runs, last = list["StoredRun"](), None
            while len(page := self.store.runs(status=status, before=last, limit=_PAGE)) == _PAGE:
                runs += page
                last = page[-1].digest
            yield from reversed([*runs, *page])

    def _may_begin(self, stored: StoredRun) -> bool:
        """Whether a waiting run's sites are there; end the run if they were not for too long, or never can be."""
        if stored.status != "waiting" or stored.digest in self._late or (roster := self.roster()) is None:
            return False
        try:
            wait = self._wait(stored, roster)
        except (StorageError, VaultError):  # not the run's fault: the queue waits
            raise
        except CloisterError as error:
            self._fail(stored, str(error))
            return False
        cohort = wait.run.manifest.settings.cohort
        away = sorted(cohort.sizes.keys() - self._agents.online())
        if (here := len(cohort.sizes) - len(away)) >= cohort.minimum:
            return True
        hours = self.place.settings.service.wait_hours
        says = f"{here} of the {cohort.minimum} sites that it needs are online; not online: {', '.join(away)}"
        if time.monotonic() - wait.since > hours * 3600:
            self._fail(stored, f"after {hours:g} hours, only {says}; have their agents started, then try it again")
        elif says != wait.says:
            wait.says = says
            self.store.mark(stored.digest, "waiting", says)
            log.info("%s waits: %s", _label(stored), says)
        return False

    def _wait(self, stored: StoredRun, roster: Roster) -> _Wait:
        """Return a waiting run, opened under the newest roster.

        Raises:
            CloisterError: if the run has expired, cannot run under this roster, or cannot be read now.
        """
        wait = self._waits.get(stored.digest)
        if wait is None or wait.roster != roster.version:
            run = admitted(self.store.document(stored.digest), roster)
            since = wait.since if wait else time.monotonic()
            wait = self._waits[stored.digest] = _Wait(run, roster.version, since, wait.says if wait else "")
        wait.run.manifest.check_valid(time.time())
        return wait

    def _begin(self, stored: StoredRun, tries: int = 0) -> None:
        self._waits.pop(stored.digest, None)
        self.store.mark(stored.digest, "running")
        one = Running(stored.digest, _label(stored), self._serve, tries)
        one.start()  # unless the system has no more threads: then it is not there, and begins later
        self._running[stored.digest] = one

    def _serve(self, one: Running) -> None:
        """Serve a run to its end, in its own thread."""
        stored = grid = None
        try:
            stored, roster = self.store.run(one.digest), self.roster()
            assert roster is not None  # noqa: S101 - only then a run begins
            run = open_run(self.store.document(stored.digest), roster)
            if one.tries:
                run.manifest.check_valid(time.time())
            grid = self._agents.grid(run, roster, one.interruption)
            new_epoch = one.digest in self.new_epoch and not one.tries
            serve_run(
                self.place, self.store, run, grid, roster, self._shared, new_epoch=new_epoch,
                interruption=one.interruption,
            )  # fmt: skip
        except RunInterrupted:
            if not one.interruption.reason:
                log.info("%s goes on once the server is started again", one.label)
        except (StorageError, VaultError, OSError) as error:
            one.error = error
            log.warning("%s pauses, and is tried again: %s", one.label, sentence(error))
        except CloisterError as error:
            self._failed(one, stored, error, noted=grid is not None)
        except BaseException as error:  # a bug must not block the queue
            log.debug("%s", one.label, exc_info=error)
            self._failed(one, stored, error, noted=False)
        finally:
            if grid:
                grid.close()
            self._wake.set()

    def _failed(self, one: Running, stored: StoredRun | None, error: BaseException, *, noted: bool) -> None:
        """Note a failure, unless the run itself has; if the store fails meanwhile, the run is tried again."""
        if noted:
            return
        try:
            self._fail(stored or self.store.run(one.digest), sentence(error))
        except (CloisterError, OSError) as lost:
            one.error = lost

    def _forget(self, stored: StoredRun) -> None:
        self._running.pop(stored.digest, None)
        self._waits.pop(stored.digest, None)

    def _fail(self, stored: StoredRun, reason: str) -> None:
        self._waits.pop(stored.digest, None)
        self._note(stored, "failed", reason)
        self.store.mark(stored.digest, "failed", reason)

    def _note(self, stored: StoredRun, event: str, reason: str) -> None:
        """Record how a run ended outside its rounds, for whoever follows its events."""
        with about(run=stored.digest):
            log_of_run = EventLog(self.store.record(stored.digest), _label(stored))
            log_of_run.record(event, reason=reason, rounds=stored.released)


def _label(stored: StoredRun) -> str:
    return f"{stored.name}-{stored.digest[:8]}"
