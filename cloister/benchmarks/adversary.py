"""`cloister bench adversary`: a malicious server tries everything that it knows; every site must refuse it.

A try is refused only if every site answers with a refusal, and every site has the models and keys that it had before.
That refusals say something, honest rounds show: some in the same consortium before and after the tries, by the same
arithmetic, and many by the real server, of which no site may refuse one.

Sites are the production code over the network's bytes, without the network. Where this machine has a disk in memory,
theirs is that: a third of a try would be waiting for a real one. Making a consortium takes as long as many tries, so
one serves for some hundreds.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from privacy.errors import CloisterError
from privacy.parallel import in_processes
from simulations.adversary import SITES
from simulations.inline import run_inline
from simulations.results import journal_path, read_events
from simulations.siege import ATTACKS, lay_siege, make_federation, quiet_agents, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulations.adversary import Adversary

_BATCH = 250  # tries, or rounds, of one consortium
_NAMES = tuple(ATTACKS)


@dataclass(frozen=True)
class _Tries:
    """Work for one process: tries of one consortium."""

    first: int
    count: int
    seed: int


@dataclass(frozen=True)
class _Rounds:
    """Work for one process: a run of honest rounds."""

    count: int
    masks: bool


def measure(tries: int, rounds: int, seed: int) -> dict[str, Any]:
    """Play so many tries, all attacks in turn, and honest rounds; say on standard error how far it is.

    Raises:
        RunError: if sites refuse what the adversary does honestly, so that their other refusals say nothing.
    """
    jobs: list[_Tries | _Rounds] = [*_tries(tries, seed), *_rounds(rounds)]
    console = Console(stderr=True, highlight=False)
    console.print(f"{tries:,} tries and {rounds:,} honest rounds, {len(SITES)} sites; seed {seed}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    refused: Counter[str] = Counter()
    with bar:
        task = bar.add_task("tries and rounds", total=tries + rounds)
        for job, found in zip(jobs, in_processes(os.cpu_count() or 1, few=0)(_work, jobs), strict=True):
            refused.update(found)
            bar.update(task, advance=job.count)
    played = Counter(_NAMES[number % len(_NAMES)] for number in range(tries))
    rows = [{"attack": name, "tries": played[name], "refused": refused[name]} for name in _NAMES]
    return {"rows": rows, "honest_rounds": rounds, "false_alarms": refused["honest"], "seed": seed}


def held(report: dict[str, Any]) -> bool:
    """Say whether sites refused all that was false, and nothing else."""
    return not report["false_alarms"] and all(row["refused"] == row["tries"] for row in report["rows"])


def table(report: dict[str, Any]) -> str:
    """Write a report for people, in 80 columns."""
    lines = [f"{'attack':<34}{'tries':>8}{'refused':>10}"]
    lines += [f"{row['attack']:<34}{row['tries']:>8,}{row['refused']:>10,}" for row in report["rows"]]
    tries, refused = (sum(row[name] for row in report["rows"]) for name in ("tries", "refused"))
    rounds, alarms = report["honest_rounds"], report["false_alarms"]
    lines += [f"{'honest rounds':<34}{rounds:>8,}{alarms:>10,}", ""]
    if held(report):
        lines.append(f"✓ every site refused all {tries:,} tries, and none of {rounds:,} honest rounds")
    else:
        lines.append(f"✗ {tries - refused:,} of {tries:,} tries passed, and {alarms:,} honest rounds were refused")
    return "\n".join(lines)


def _tries(count: int, seed: int) -> Iterator[_Tries]:
    for first in range(0, count, _BATCH):
        yield _Tries(first, min(_BATCH, count - first), seed)


def _rounds(count: int) -> Iterator[_Rounds]:
    for masks, share in ((False, count - count // 2), (True, count // 2)):
        for first in range(0, share, _BATCH):
            yield _Rounds(min(_BATCH, share - first), masks)


def _work(job: _Tries | _Rounds) -> Counter[str]:
    """Count the refusals: of each attack, or, as `honest`, of honest rounds."""
    with quiet_agents():
        return _attack(job) if isinstance(job, _Tries) else _play_fair(job)


def _attack(job: _Tries) -> Counter[str]:
    luck = np.random.default_rng([job.seed, job.first])
    refused: Counter[str] = Counter()
    todo = [_NAMES[number % len(_NAMES)] for number in range(job.first, job.first + job.count)]
    while todo:
        with _folder() as folder:
            refused.update(_besiege(lay_siege(Path(folder), luck), todo))
    return refused


def _besiege(server: Adversary, todo: list[str]) -> list[str]:
    """Play what is to do, and return what was refused; after a try that passed, the rest is for another consortium."""
    refused: list[str] = []
    while todo:
        name = todo.pop(0)
        if not ATTACKS[name](server):
            return refused
        refused.append(name)
    for run in server.runs.values():
        server.play_fair(run)
    return refused


def _play_fair(job: _Rounds) -> Counter[str]:
    with _folder() as folder:
        federation = make_federation(Path(folder))
        federation.sign(settings("honest", SITES, job.count, colluding=int(job.masks)))
        with suppress(CloisterError):  # what did not come about counts as refused
            run_inline(federation)
        events = [event for event in read_events(journal_path(federation)) if event["event"] == "round"]
    fine = sum(event["released"] and not event["problems"] for event in events)
    return Counter(honest=job.count - fine)


def _folder() -> TemporaryDirectory[str]:
    memory = "/dev/shm"  # noqa: S108 - a new folder in it, for this user alone
    return TemporaryDirectory(prefix="cloister-bench-", dir=memory if os.access(memory, os.W_OK) else None)
