"""Play one schedule: the server's app and the sites' app as they are, over the wire, until the run ends."""

from __future__ import annotations

import logging
import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from privacy.at_rest import vaults
from privacy.errors import CloisterError
from server.app import bring_up_to_date, serve_run, shared_by_runs
from server.settings import read_consortium, read_run
from simulations.attacks.liars import LIARS
from simulations.schedules.agents import Agent
from simulations.schedules.clock import replaced, virtual_time
from simulations.schedules.disk import Disk, Killed, watched
from simulations.schedules.lies import Overheard
from simulations.schedules.record import MemoryStore
from simulations.schedules.watch import Broken, Watch
from simulations.schedules.wire import Wire, WireGrid
from strategies import bodies
from strategies.interruption import Interruption
from strategies.run_state import state_from
from transport.flower import quieten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.store.store import Store
    from simulations.engine.federation import Federation
    from simulations.schedules.clock import Clock
    from simulations.schedules.consortium import Consortium
    from simulations.schedules.faults import Schedule
    from strategies.run_state import RunState

_FAILURES = 3  # of a run, after which an operator goes on with it
_DELIVERIES = 3  # of what sites still lack at the end of a run
_STARTS = 30  # of a server in one schedule: beyond, it would start for ever


@dataclass(frozen=True)
class Outcome:
    """What came of a schedule."""

    broken: str  # the promise that did not hold; "" if all held
    steps: int  # deliveries, after each of which promises were checked
    checks: int
    released: int  # rounds whose sum was opened
    crashes: int
    trace: str  # digest of everything that passed: the same whenever the schedule is played


class _Play:
    def __init__(self, schedule: Schedule, federation: Federation, clock: Clock) -> None:
        self.schedule, self.federation = schedule, federation
        self._place = read_consortium(federation.server)
        self._roster = roster = self._place.roster()
        self.disks = {site: Disk(path) for site, path in federation.paths.items()}
        self.server = Disk(federation.server)
        self.watch = Watch(schedule.shape.minimum, self.disks, schedule.liar)
        self.agents = [
            Agent(site, roster.member(site).node_id, disk, clock, self.watch) for site, disk in self.disks.items()
        ]
        self.run = read_run(federation.manifest, roster)
        self.store = MemoryStore(self.server)
        overheard = Overheard(self.run.document, roster, {agent.node: agent.name for agent in self.agents})
        nodes = {agent.node: agent for agent in self.agents}
        self.wire = Wire(schedule, clock, nodes, self.store.kept, self.watch, overheard)
        self.crashes = 0
        for agent in self.agents:
            agent.plan([fault for fault in schedule.faults if fault.party == agent.name])
            if agent.name == schedule.liar:
                agent.lies = dict(LIARS[schedule.lie])
        self._cuts = {fault.place: fault for fault in schedule.faults if fault.party == "server"}
        self.server.kill_at = set(self._cuts)

    def to_the_end(self) -> None:
        """Serve until the run ends; start the server again whenever it was killed or the run failed."""
        failures = 0
        for _ in range(_STARTS):
            try:
                self._serve()
            except Killed:
                self._crash()
            except CloisterError as error:
                failures += 1
                self.wire.restart()
                if self.schedule.hostile or (failures > _FAILURES and not self.schedule.calm):
                    return  # a hostile server can keep a run from going on; in other runs all rounds may be over
                self.watch.check(failures <= _FAILURES, f"progress: the run fails again and again: {error}")
            else:
                return
        self.watch.check(holds=False, promise="progress: the run does not end")

    def _serve(self) -> None:
        grid = WireGrid(int(self.run.digest[:15], 16), self.wire)
        serve_run(self._place, cast("Store", self.store), self.run, grid, self._roster, shared_by_runs(self._place))

    def _crash(self) -> None:
        fault = self._cuts.get(self.server.operations)
        cut = fault is not None and fault.kind == "cut"
        self.server.restart(random.Random(fault.choice) if fault and cut else None)  # noqa: S311 - guards nothing
        self.wire.restart()
        self.crashes += 1
        back = self.wire.clock.now + (fault.seconds if fault else self.wire.down)
        self.wire.serving = False
        self.wire.run_until(back)
        self.wire.serving = True
        self.wire.clock.now = max(self.wire.clock.now, back)

    def afterwards(self) -> None:
        """Once nothing goes wrong any more, bring every site up to date, and check where the run has ended."""
        schedule, watch = self.schedule, self.watch
        if not (self.wire.calm or schedule.hostile):
            self.wire.calm_down()
            try:
                self._serve()
            except CloisterError as error:
                watch.check(not watch.released, f"progress: the run does not go on: {error}")  # otherwise too few came
        self._deliver_late()
        state = self._state()
        if state is not None:
            watch.check(not state.expelled.keys() - {schedule.liar}, f"no slander: {', '.join(state.expelled)}")
        if schedule.hostile:
            return
        last = schedule.shape.rounds
        if schedule.calm and not self.wire.too_late:
            watch.check(last in watch.released, f"progress: round {last} was calm, and was not released")
        if state is not None and watch.released:
            watch.ends(state.model, {agent.name: self._model(agent) for agent in self.agents})

    def _deliver_late(self) -> None:
        """Deliver what sites still lack, as a server does once they are online."""
        for _ in range(_DELIVERIES if not self.schedule.hostile else 0):
            if not self.store.behind:
                return
            self.wire.calm_down()
            grid = WireGrid(int(self.run.digest[:15], 16), self.wire)
            shared, store = shared_by_runs(self._place), cast("Store", self.store)
            bring_up_to_date(self._place, store, self.run, grid, self._roster, shared, interruption=Interruption())

    def _state(self) -> RunState | None:
        state = self.store.kept.state()
        return None if state is None else state_from(state, self.run.digest, "the store")

    def _model(self, agent: Agent) -> str:
        try:
            return agent.site.checkpoint(self.run.manifest, self.run.digest).digest
        except CloisterError as error:
            return str(error)


def play(schedule: Schedule, consortium: Consortium) -> Outcome:
    """Play a schedule to its end, or until a promise does not hold."""
    quieten()
    federation, broken = consortium.begin(schedule.shape, keys=schedule.keys), ""
    with (
        _silent(),
        replaced(vaults, "_place", lambda _: None),  # no folder is encrypted
        replaced(bodies, "trim", lambda: None),  # what a schedule needs, the next one needs again
        virtual_time(schedule.seed) as clock,
    ):
        game = _Play(schedule, federation, clock)
        with watched(game.server, *game.disks.values()):
            try:
                game.to_the_end()
                game.afterwards()
            except Broken as error:
                broken = str(error)
    wire, watch, crashes = game.wire, game.watch, game.crashes + sum(agent.crashes for agent in game.agents)
    return Outcome(broken, wire.steps, watch.checks, len(watch.released), crashes, wire.trace.hexdigest())


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the parties from logging: what goes wrong here is meant to."""
    log = logging.getLogger("cloister")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
