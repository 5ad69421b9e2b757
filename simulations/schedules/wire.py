"""The way between server and sites in virtual time: every message passes a place where a schedule may interfere.

Messages and answers are encoded and decoded as for the network. A site's messages wait while it is offline, as in the
server's mailboxes; they are lost when the server is killed, but not what was already on its way.
"""

from __future__ import annotations

import random
import time
from functools import partial
from hashlib import sha256
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from typing_extensions import override

from privacy.run.plan import read_plan
from simulations.schedules.disk import Killed
from simulations.schedules.lies import altered_answer, altered_question
from transport.flower import reply
from transport.grid import ReplyGrid
from transport.messages import EVALUATE, TRAIN
from transport.parcel import decode_reply, encode
from transport.run_messages import read_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from flwr.app import Message

    from simulations.schedules.agents import Agent
    from simulations.schedules.clock import Clock
    from simulations.schedules.faults import Fault, Schedule
    from simulations.schedules.lies import Overheard
    from simulations.schedules.record import MemoryRecord
    from simulations.schedules.watch import Watch

_FASTEST, _SLOWEST = 0.001, 0.05  # seconds that a message takes
_OFFLINE = 0.2  # seconds after which the server notices


class Wire:
    """What lies between the parties, and what happens there, in order of time."""

    def __init__(self, schedule: Schedule, clock: Clock, agents: dict[int, Agent], kept: MemoryRecord, watch: Watch,
                 overheard: Overheard) -> None:  # fmt: skip
        self.clock, self.agents, self.watch, self._kept = clock, agents, watch, kept
        self.calm, self.steps, self.serving = False, 0, True
        self.too_late = False  # whether the last round's plan is a killed server's, and its deadline had passed
        self.trace = sha256()  # of everything that passed
        self.down = 0.0  # seconds until a killed server is back
        self._overheard, self._rounds = overheard, schedule.shape.rounds if schedule.calm else 0
        self._hostile = schedule.hostile
        self._rng = random.Random(schedule.seed)  # noqa: S311 - guards nothing
        self._faults: dict[int, list[Fault]] = {}
        for fault in schedule.faults:
            if not fault.party:
                self._faults.setdefault(fault.place, []).append(fault)
        self._passed, self._order = 0, count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sent: dict[str, Message] = {}  # that the server still wants an answer to
        self._waiting: dict[int, dict[str, Message]] = {node: {} for node in agents}  # for sites that are offline
        self.arrived: dict[str, Message] = {}  # answers, by the message that they answer

    def restart(self) -> None:
        """Forget what the server had in memory."""
        self._sent.clear()
        self.arrived.clear()
        for box in self._waiting.values():
            box.clear()

    def calm_down(self) -> None:
        """Have nothing go wrong from now on."""
        self.calm = True
        self._faults.clear()
        self._kept.disk.kill_at.clear()
        for agent in self.agents.values():
            agent.calm_down()
            if agent.away_until > self.clock.now:
                agent.away_until = self.clock.now
                self._at(self.clock.now, partial(self._back, agent))

    def online(self) -> list[int]:
        """Return the nodes that the server sees."""
        self.run_until(self.clock.now)
        return sorted(node for node, agent in self.agents.items() if self.clock.now >= agent.away_until)

    def send(self, message: Message) -> None:
        """Take a message from the server."""
        message.metadata.created_at = time.time()  # Flower's own clock is not ours
        self._look(message)
        self._sent[message.metadata.message_id] = message
        self._pass(message, lambda faults, late: self._to_site(message, faults, late), lambda: self._again(message))

    def forget(self, message_ids: AbstractSet[str]) -> None:
        """Forget messages that the server no longer waits for."""
        for message_id in message_ids:
            self._sent.pop(message_id, None)
            self.arrived.pop(message_id, None)

    def run_until(self, ends: float, wanted: AbstractSet[str] = frozenset()) -> None:
        """Let happen what happens until then, or until a wanted answer arrives."""
        while self._events and self._events[0][0] <= ends and wanted.isdisjoint(self.arrived):
            moment, _, event = heappop(self._events)
            self.clock.now = max(self.clock.now, moment)
            self.steps += 1
            event()

    def _look(self, message: Message) -> None:
        """Check what the server sends, and note when its last round begins."""
        kind, content = message.metadata.message_type, message.content
        if kind == TRAIN.name:
            plan = read_plan(TRAIN.read(content).plan)
            self.watch.planned(plan, self._kept.state() or b"")
            if plan.round == self._rounds and not self.calm:
                self.calm_down()
                self.too_late = plan.deadline < time.time()
        elif kind == EVALUATE.name:
            total = read_sum(content)
            plan = read_plan(total.plan)
            self.watch.summed(plan, total.contributions, kept=self._kept.has_sum(plan.round))

    def _pass(self, message: Message, go: Callable[[list[Fault], float], None], again: Callable[[], None]) -> None:
        """Let a message or an answer pass, with whatever the schedule has for this place; `again` if it gets lost."""
        self._passed += 1
        self.trace.update(f"{self.clock.now} {message.metadata.dst_node_id} {message.metadata.message_type}".encode())
        faults, late = self._faults.pop(self._passed, []), 0.0
        for fault in faults:
            if fault.kind in {"kill", "cut"} and self.serving:
                self.down, self._kept.disk.dead = fault.seconds, True
                raise Killed
            if fault.kind == "leave":
                self._leave(self.agents[message.metadata.dst_node_id], fault)
            late += fault.seconds if fault.kind == "delay" else 0.0
        if lost := [fault for fault in faults if fault.kind == "lose"]:
            self._at(self._after(lost[0].seconds), again)
            return
        go(faults, late)
        for fault in faults:
            if fault.kind == "double":
                go([], fault.seconds)

    def _leave(self, agent: Agent, fault: Fault) -> None:
        agent.away_until = self.clock.now + fault.seconds
        self._at(agent.away_until, lambda: self._back(agent))

    def _at(self, moment: float, event: Callable[[], None]) -> None:
        heappush(self._events, (moment, next(self._order), event))

    def _after(self, late: float) -> float:
        return self.clock.now + late + self._rng.uniform(_FASTEST, _SLOWEST)

    def _to_site(self, message: Message, faults: list[Fault], late: float) -> None:
        agent, moment = self.agents[message.metadata.dst_node_id], self._after(late)
        data = b"".join(encode(message))
        for fault in faults:
            if fault.kind == "replay" and (earlier := self._overheard.earlier(message, fault.choice)):
                self._at(moment + fault.seconds, partial(self._deliver, agent, message, earlier))
            if fault.kind == "alter" and self._hostile:
                other = altered_question(self._overheard, message, fault.choice) or data
                if fault.choice % 2:  # besides the true one, not instead of it
                    self._at(moment + fault.seconds / 100, partial(self._deliver, agent, message, data))
                data = other
        self._overheard.question(message, data)
        self._at(moment, lambda: self._deliver(agent, message, data))

    def _deliver(self, agent: Agent, message: Message, data: bytes) -> None:
        if self.clock.now < agent.away_until:
            self._waiting[agent.node][message.metadata.message_id] = message
            return
        answer = agent.answer(data)
        if answer is None:  # it was killed
            self._at(agent.away_until, lambda: self._back(agent))
            if message.metadata.message_id in self._sent:
                self._waiting[agent.node][message.metadata.message_id] = message
            return
        self._pass(
            message, lambda faults, late: self._to_server(message, answer, faults, late), lambda: self._again(message)
        )

    def _back(self, agent: Agent) -> None:
        """Deliver what waited for a site that is online again."""
        if self.clock.now < agent.away_until:
            return
        waiting, self._waiting[agent.node] = self._waiting[agent.node], {}
        for message in waiting.values():
            self._again(message)

    def _again(self, message: Message) -> None:
        """Deliver a message again, if the server still wants an answer: it waits in the site's mailbox until then."""
        if message.metadata.message_id in self._sent:
            agent, data = self.agents[message.metadata.dst_node_id], b"".join(encode(message))
            self._at(self._after(0.0), lambda: self._deliver(agent, message, data))

    def _to_server(self, message: Message, answer: Message, faults: list[Fault], late: float) -> None:
        for fault in faults:
            if fault.kind == "alter" and (other := altered_answer(self._overheard, message, answer, fault.choice)):
                answer = reply(other, message)
        self._overheard.answer(message, answer)
        data = b"".join(encode(answer))

        def arrive() -> None:
            message_id = answer.metadata.reply_to_message_id
            if (asked := self._sent.pop(message_id, None)) is not None:  # the first answer counts
                self.arrived[message_id] = decode_reply(data, asked)

        self._at(self._after(late), arrive)


class WireGrid(ReplyGrid):
    """One server's end of the wire."""

    def __init__(self, run_id: int, wire: Wire) -> None:
        super().__init__(run_id)
        self._wire = wire

    @override
    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        return self._wire.online()

    @override
    def _send(self, message: Message) -> None:
        self._wire.send(message)

    @override
    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        if seconds < 0:
            return None
        wire = self._wire
        ends = wire.clock.now + seconds
        wire.run_until(ends, waiting)
        for message_id in wire.arrived:
            if message_id in waiting:
                return wire.arrived.pop(message_id)
        wire.clock.now = max(wire.clock.now, ends)
        return None

    @override
    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        self._wire.forget(message_ids)
