"""`cloister bench scale`: many sites, whose agents share processes, without training.

As `cloister bench round`, with `cloister agent SITE SITE …`. It measures a round, from one round's end to the next; how
long the server waited for the answers to each kind of message; the processor time of the server and of all agents; and
the server's memory after every round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from scipy.stats import theilslopes

from cloister.benchmarks.round import bar, environment_variable
from cloister.local import follow, start_agents_together, start_server
from cloister.processes import Processes
from privacy.errors import RunError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_results
from simulations.tasks.idle import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from simulations.engine.results import Results

_TASK = "simulations.tasks.idle:Idle"
_RECORDS = "0\n" * 20
_SIZE = 16  # records that each site declares
_LOOK_SECONDS = 0.02
_END_SECONDS = 60.0  # for a server to exit after its run


@dataclass
class _Course:
    """What was seen by the end of each round: the time, the server's memory in bytes, and processor seconds so far.

    A server holds messages most of the time. So its memory is looked at all the while, and the least of a round counts.
    """

    times: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    agents: list[float] = field(default_factory=list)
    least: int = 1 << 62  # of the round that is going on

    def watch(self, processes: Processes, ended: Event) -> None:
        """Look at the server's memory until `ended` is set."""
        while not ended.wait(_LOOK_SECONDS):
            self.least = min(self.least, processes.memory("server") or self.least)


def measure(parameters: int, rounds: int, sites: int, processes: int, *, masked: bool) -> dict[str, Any]:
    """Run a federation of many sites in few processes, for `rounds` rounds.

    Raises:
        RunError: if a round failed or lacked a site, or the sites do not end with the same model.
    """
    console = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="cloister-bench-") as folder, environment_variable(PARAMETERS, parameters):
        console.print(f"founding a consortium of {sites} sites")
        federation = Federation.create(Path(folder), [f"site-{number:03}" for number in range(1, sites + 1)], "bench")
        for path in federation.paths.values():
            (path / SiteTerms.file).write_text(_RECORDS, encoding="utf-8")
        federation.sign(_settings(federation.sites, rounds, masked=masked))
        console.print(f"{rounds} rounds of {sites} sites in {processes} processes, {parameters:,} parameters")
        with Processes() as running, bar(console, rounds) as advance:
            terms = SiteTerms((_TASK,), epsilon=inf, maximum_epsilon=inf, collusion_resistant=False)
            address = start_server(running, federation)
            names = start_agents_together(running, federation, address, terms, processes)
            course, ended = _Course(), Event()
            watching = Thread(target=course.watch, args=(running, ended))
            watching.start()
            try:
                follow(running, federation, _watching(running, names, course, advance))
            finally:
                ended.set()
                watching.join()
            peaks = [running.peak_memory(name) or 0 for name in names]
            running.wait("server", _END_SECONDS)
        return _summarise(read_results(federation), course, federation.sites) | {
            "parameters": parameters,
            "sites": sites,
            "processes": processes,
            "masked": masked,
            "agent_peak_bytes": round(sum(peaks) / sites),
        }


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    phases = ", ".join(f"{kind.partition('.')[2] or kind} {seconds:.2f}" for kind, seconds in report["phases"].items())
    slope, low, high = (report["server_growth"][kind] / 1e6 for kind in ("slope", "low", "high"))
    at_end = report["server_bytes"][-1] / 1e6
    kind = f"{'with' if report['masked'] else 'without'} masks"
    site = report["agent_peak_bytes"] / 1e6
    return f"""\
{report["parameters"]:,} parameters, {report["sites"]} sites in {report["processes"]} processes, {kind}, no training

a round    {report["median_seconds"]:.2f} s: the median of {report["rounds"]}; every site in each
answers    {phases} s
processor  {report["server_seconds"]:.2f} s at the server, {report["agent_seconds"]:.2f} s at all sites
memory     {at_end:,.0f} MB at the server, {site:,.0f} MB a site
growth     {slope:+.1f} MB in 100 rounds of the second half ({low:+.1f} to {high:+.1f}, 95 %)"""


def _settings(sites: Sequence[str], rounds: int, *, masked: bool) -> RunSettings:
    return RunSettings(
        name="idle",
        task=_TASK,
        rounds=rounds,
        training=Training(steps_per_round=0, sample_rate=0.1, learning_rate=1.0),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
        encryption=Encryption(update_bound=1.0, collusion_resistant=masked),
        cohort=Cohort(sizes=dict.fromkeys(sites, _SIZE), minimum=len(sites), round_deadline_seconds=600.0),
    )


def _watching(
    processes: Processes, agents: Sequence[str], course: _Course, advance: Callable[[], None]
) -> Callable[[dict[str, Any]], None]:
    def show(event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            msg = f"{event['reason']}\nthe log of the first agents ends with:\n{processes.tail(agents[0])}"
            raise RunError(msg)
        if event["event"] == "round":
            course.times.append(event["time"])
            course.memory.append(course.least)
            course.least = processes.memory("server") or 0
            course.server.append(processes.processor_seconds("server") or 0.0)
            course.agents.append(sum(processes.processor_seconds(name) or 0.0 for name in agents))
            advance()

    return show


def _summarise(results: Results, course: _Course, sites: Sequence[str]) -> dict[str, Any]:
    events = [event for event in results.events if event["event"] == "round"]
    for event in events:
        if not event["released"] or set(event["sites"]) != set(sites):
            msg = f"round {event['round']} ran without a site, so its time is not representative: {event['problems']}"
            raise RunError(msg)
    if set(results.digests) != set(sites) or len(set(results.digests.values())) != 1:
        msg = f"the sites do not all have the same model: {results.digests}"
        raise RunError(msg)
    kinds = {kind for event in events[1:] for kind in event["phases"]}
    return {
        "rounds": len(events),
        "median_seconds": round(float(np.median(np.diff(course.times))), 3),
        "phases": {
            kind: round(float(np.median([event["phases"].get(kind, 0.0) for event in events[1:]])), 3)
            for kind in sorted(kinds)
        },
        "server_seconds": round(float(np.median(np.diff(course.server))), 3),
        "agent_seconds": round(float(np.median(np.diff(course.agents))), 3),
        "server_bytes": course.memory,
        "server_growth": growth(course.memory[len(course.memory) // 2 :]),
        "bytes_up": round(events[-1]["bytes_up"] / len(sites)),
        "bytes_down": round(events[-1]["bytes_down"] / len(sites)),
        "model": next(iter(results.digests.values())),
    }


def growth(memory: Sequence[int]) -> dict[str, float]:
    """Return how a server's memory grows, in bytes per 100 rounds, and the 95 % interval of it.

    The median of the slopes between any two rounds, which one large round does not change (Theil 1950, Sen 1968).

    >>> growth([10, 12, 14, 900, 18])["slope"]
    200
    """
    if not memory[1:]:
        return {"slope": 0, "low": 0, "high": 0}
    line = theilslopes(memory)
    return {"slope": round(100 * line.slope), "low": round(100 * line.low_slope), "high": round(100 * line.high_slope)}
