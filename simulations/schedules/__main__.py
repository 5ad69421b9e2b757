"""`python -m simulations.schedules`: play thousands of schedules, or one again; `make schedules` does the same."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track

from simulations.schedules.bugs import BUGS, put_in
from simulations.schedules.consortium import Consortium
from simulations.schedules.faults import draw
from simulations.schedules.play import play

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from simulations.schedules.faults import Schedule
    from simulations.schedules.play import Outcome

    _Batch = tuple[list[tuple[int, Outcome]], float]

SCHEDULES = 5000
MOST = 600  # schedules in which a bug must be found
_AT_ONCE = 8  # that a process takes at a time


@dataclass
class Report:
    """What came of many schedules."""

    schedules: int = 0
    steps: int = 0  # deliveries of messages and answers
    checks: int = 0  # of promises
    released: int = 0  # rounds
    crashes: int = 0  # of servers and sites
    seconds: float = 0.0
    processor_seconds: float = 0.0
    broken: dict[int, str] = field(default_factory=dict)  # by seed

    def add(self, seed: int, outcome: Outcome) -> None:
        """Add a schedule."""
        self.schedules += 1
        self.steps += outcome.steps
        self.checks += outcome.checks
        self.released += outcome.released
        self.crashes += outcome.crashes
        if outcome.broken:
            self.broken[seed] = outcome.broken


def explore(seeds: Sequence[int], processes: int) -> Report:
    """Play the schedules of these seeds, in several processes."""
    report, began = Report(), time.monotonic()
    console, batches = Console(stderr=True), -(-len(seeds) // _AT_ONCE)
    played, hidden = _played(seeds, processes), not console.is_terminal
    for outcomes, seconds in track(played, "schedules", batches, console=console, transient=True, disable=hidden):
        report.processor_seconds += seconds
        for seed, outcome in outcomes:
            report.add(seed, outcome)
    report.seconds = round(time.monotonic() - began, 1)
    report.processor_seconds = round(report.processor_seconds, 1)
    return report


def find(bug: str, consortium: Consortium, seeds: Iterable[int]) -> tuple[int, int, str] | None:
    """Return how many schedules it took to find a bug, the last one's seed and what it broke; None if none did."""
    with put_in(bug):
        for count, seed in enumerate(seeds, 1):
            if broken := play(draw(seed), consortium).broken:
                return count, seed, broken
    return None


def smallest(schedule: Schedule, consortium: Consortium) -> Schedule:
    """Return a schedule that still breaks a promise, and none of whose faults can be left out."""
    for smaller in schedule.smaller():
        if play(smaller, consortium).broken:
            return smallest(smaller, consortium)
    return schedule


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for consortia, in memory if there is some: sites wait for the disk whenever they write."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own, with a random name, is made in it
    with tempfile.TemporaryDirectory(prefix="s", dir=memory if memory.is_dir() else None) as place:
        yield Path(place)


_own: list[Consortium] = []  # this process's


def _begin(place: Path) -> None:
    torch.set_num_threads(1)
    _own[:] = [Consortium(place / str(os.getpid()))]
    gc.freeze()


def _play(seeds: Sequence[int]) -> _Batch:
    gc.disable()  # what a schedule leaves is small
    began = time.process_time()
    try:
        return [(seed, play(draw(seed), _own[0])) for seed in seeds], time.process_time() - began
    finally:
        gc.enable()
        gc.collect()


def _played(seeds: Sequence[int], processes: int) -> Iterator[_Batch]:
    batches = [seeds[start : start + _AT_ONCE] for start in range(0, len(seeds), _AT_ONCE)]
    with folder() as place:
        if processes == 1:
            _begin(place)
            yield from map(_play, batches)
            return
        with multiprocessing.get_context("fork").Pool(processes, _begin, (place,)) as pool:
            yield from pool.imap_unordered(_play, batches)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, play, and print what came of it; return the exit code."""
    parser = argparse.ArgumentParser("python -m simulations.schedules", description=__doc__)
    parser.add_argument("--schedules", type=int, default=SCHEDULES, help="how many to play")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--seed", type=int, help="play this one again, alone; if it breaks a promise, make it smaller")
    parser.add_argument("--bug", choices=BUGS, help="with --seed: put this bug in first")
    parser.add_argument("--no-bugs", action="store_true", help="do not look for the bugs put in on purpose")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _again(options.seed, options.bug)
    report = explore(range(options.first, options.first + options.schedules), options.processes)
    bugs = {} if options.no_bugs else _bugs(options.first)
    if options.json:
        _say(json.dumps({**asdict(report), "bugs": bugs}))
    else:
        _tell(report, bugs)
    return int(bool(report.broken) or any(bug["found"] is None for bug in bugs.values()))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - it is what this command is for


def _again(seed: int, bug: str | None) -> int:
    schedule = draw(seed)
    with folder() as place, put_in(bug) if bug else nullcontext():
        consortium = Consortium(place)
        broken = play(schedule, consortium).broken
        _say(f"schedule {seed}: {schedule}")
        if not broken:
            _say("every promise holds")
            return 0
        _say(f"broken: {broken}")
        _say(f"as small as it gets: {smallest(schedule, consortium)}")
    return 1


def _bugs(first: int) -> dict[str, dict[str, object]]:
    """Look for every bug; return, by name, after how many schedules it was found, and what it broke."""
    bugs = dict[str, dict[str, object]]()
    with folder() as place:
        consortium = Consortium(place)
        for bug in BUGS:
            count, seed, broken = find(bug, consortium, range(first, first + MOST)) or (None, None, "")
            bugs[bug] = {"found": count, "seed": seed, "broken": broken}
    return bugs


def _tell(report: Report, bugs: Mapping[str, Mapping[str, object]]) -> None:
    took = f"{report.seconds:g} s ({report.processor_seconds:g} s of processor time)"
    _say(
        f"{report.schedules} schedules in {took}: {report.steps} deliveries, {report.crashes} crashes, "
        f"{report.released} rounds opened, {report.checks} promises checked, {len(report.broken)} broken"
    )
    for seed, broken in sorted(report.broken.items()):
        _say(f"{broken}\n    again: make schedules ARGS='--seed {seed}'")
    for bug, found in bugs.items():
        result = f"found by schedule {found['found']}: {found['broken']}" if found["found"] else "not found"
        _say(f"{bug}: {result}")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # otherwise sets of names have another order in every process
        again = [sys.executable, "-m", "simulations.schedules", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606 - this very command
    sys.exit(main())
