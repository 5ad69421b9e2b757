"""Play a run's first rounds with real processes, and measure what they take."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cloister.local import follow, start_server
from cloister.processes import Processes
from privacy.errors import RunError
from privacy.run.settings import Cohort
from simulations.engine.federation import Federation
from simulations.engine.stored_site import RECORDS, write_records
from simulations.planning import TRAINING
from simulations.planning.records import repeated
from simulations.study.protocol import terms_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from privacy.run.settings import RunSettings
    from simulations.pools import Pool

AGENT = "simulations.planning"
_HELD_OUT = 0.2  # a site's default: of five records, four are trained on
_LEAST = 6  # rounds
_DEADLINE = 600.0  # seconds of a round, which a busy machine does not miss


@dataclass
class Measured:
    """What rounds of a cohort took here: processor seconds, bytes, and peak memory in bytes."""

    settings: RunSettings  # of this cohort
    rounds: int = 0
    elapsed: float = 0.0  # seconds of a round, all processes on this machine
    first: dict[str, float] = field(default_factory=dict)  # processor seconds by process, of the first round
    busy: dict[str, float] = field(default_factory=dict)  # and of every later one
    training: dict[str, float] = field(default_factory=dict)  # of which for training, by site
    bytes_up: float = 0.0  # of all sites in a round
    bytes_down: float = 0.0
    memory: dict[str, int] = field(default_factory=dict)  # by process


class _EnoughError(Exception):
    """Enough rounds have been measured."""


class Watch:
    """Reads the clocks of the processes whenever the server logs an event."""

    def __init__(
        self, processes: Processes, names: Sequence[str], seconds: float, advance: Callable[[str], None]
    ) -> None:
        self._processes, self._names, self._seconds, self._advance = processes, names, seconds, advance
        self.times = list[float]()
        self.clocks = list[dict[str, float]]()
        self.events = list[dict[str, Any]]()
        self.memory: dict[str, int] = {}

    def show(self, event: dict[str, Any]) -> None:
        """Take an event of the run.

        Raises:
            RunError: if the run fails, or a site is not in a round.
        """
        name = self._names[0]
        if event["event"] == "failed":
            said = self._processes.tail(name)
            msg = f"the measured run failed: {event['reason']}; the log of {name} ends with:\n{said}"
            raise RunError(msg)
        if event["event"] not in {"epoch", "round"}:
            return
        if event["event"] == "round":
            if not event["released"] or event["problems"]:
                why = "; ".join(f"{site}: {problem}" for site, problem in event["problems"].items())
                msg = f"the measured run goes wrong in round {event['round']}: {event.get('reason') or why}"
                raise RunError(msg)
            self.events.append(event)
            self._advance(f"round {event['round']}")
        elif self.events:
            return
        self.times.append(time.monotonic())
        before = self.clocks[-1] if self.clocks else {}  # a process that has ended has no clock any more
        self.clocks.append(
            {name: self._processes.processor_seconds(name) or before.get(name, 0.0) for name in self._names}
        )
        self.memory |= {name: peak for name in self._names if (peak := self._processes.peak_memory(name))}
        if len(self.events) >= _LEAST and self.times[-1] - self.times[1] > self._seconds:
            raise _EnoughError


def measure(
    settings: RunSettings, pool: Pool, sizes: Mapping[str, int], seconds: float, beside: Path,
    advance: Callable[[str], None],
) -> Measured:  # fmt: skip
    """Play the first rounds of a run over these sites, with a server and an agent of each as processes.

    Args:
        settings: the run's.
        pool: records, of which every site gets as many as it declares, and those it holds out.
        sizes: the sites, and how many records each trains on.
        seconds: how long to measure, after the first round.
        beside: a folder in which the run's task may lie.
        advance: called with what goes on.

    Raises:
        CloisterError: if the run does not go well here.
    """
    cohort = Cohort(dict(sizes), min(settings.cohort.minimum, len(sizes)), _DEADLINE)
    measured = Measured(replace(settings, cohort=cohort, rounds=max(settings.rounds, _LEAST + 1)))
    with TemporaryDirectory(prefix="cloister-plan-") as folder, Processes() as processes:
        federation = Federation.create(Path(folder), tuple(sizes), consortium="plan")
        federation.sign(measured.settings)
        advance("starting server and agents")
        address = start_server(processes, federation, _environment(beside))
        terms = replace(terms_for(measured.settings), held_out=_HELD_OUT, file=RECORDS, device="auto")
        for site, path in federation.paths.items():
            write_records(repeated(pool, -(-sizes[site] * 5 // 4)), path / RECORDS)
            federation.write_settings(site, address, terms)
            processes.start_module(AGENT, site, path / "agent.log", str(path), env=_environment(beside))
        watch = Watch(processes, [*sizes, "server"], seconds, advance)
        with suppress(_EnoughError):
            follow(processes, federation, watch.show)
        _summarise(measured, watch)
        for site, path in federation.paths.items():
            measured.training[site] = _training(path / TRAINING)
    return measured


def _environment(beside: Path) -> dict[str, str]:
    """Return what lets a process find a task that lies beside its run, or in the current folder."""
    given = filter(None, [os.environ.get("PYTHONPATH")])
    return {"PYTHONPATH": os.pathsep.join([*given, str(beside.absolute()), str(Path.cwd())])}


def _summarise(measured: Measured, watch: Watch) -> None:
    start, after, end = watch.clocks[0], watch.clocks[1], watch.clocks[-1]
    measured.rounds = later = len(watch.events) - 1
    measured.elapsed = (watch.times[-1] - watch.times[1]) / later
    measured.first = {name: after[name] - start[name] for name in end}
    measured.busy = {name: (end[name] - after[name]) / later for name in end}
    measured.bytes_up = sum(event["bytes_up"] for event in watch.events[1:]) / later
    measured.bytes_down = sum(event["bytes_down"] for event in watch.events[1:]) / later
    measured.memory = watch.memory


def _training(path: Path) -> float:
    """Return the processor seconds of a round's training, without the first round, which tries ways to train."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
    return sum(float(line.split()[1]) for line in lines) / len(lines) if lines else 0.0
