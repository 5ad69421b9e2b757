"""`cloister bench adversary`: a malicious server tries all its attacks; every site must refuse them.

A try counts as refused only if every site answers with a refusal, and its models, keys and ledgers are unchanged.
Lying members face the real server, which must blame them and nobody else, and go on without them. Honest rounds show
that refusals mean something: some in the same consortium before and after the tries, with the same arithmetic, and many
with the real server. No site may refuse any of them.

Sites are the production code with the network's bytes, without the network. Their disks are in memory if possible: a
real disk would take a third of the time. Making a consortium takes as long as many tries, so one consortium serves for
a few hundred tries.
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
from simulations.attacks.attack_suite import ATTACKS, make_federation, prepare_attacks, quiet_agents, settings
from simulations.attacks.liars import LIARS, Members
from simulations.attacks.malicious_server import SITES
from simulations.engine.inline import run_inline
from simulations.engine.results import read_events

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulations.attacks.malicious_server import MaliciousServer

_ATTACKS, _LIES = tuple(ATTACKS), tuple(LIARS)
_OTHERS = "others: "  # prefix of counts of members blamed for another's lie
_BATCH = 250  # tries or rounds per consortium


@dataclass(frozen=True)
class _AttackJob:
    """Work for one process: attacks on one consortium."""

    names: tuple[str, ...]
    seed: int
    number: int


@dataclass(frozen=True)
class _LieJob(_AttackJob):
    """Work for one process: lying members of one consortium."""


@dataclass(frozen=True)
class _Rounds:
    """Work for one process: a run of honest rounds."""

    count: int
    masks: bool


def measure(tries: int, rounds: int, seed: int) -> dict[str, Any]:
    """Make `tries` tries of all attacks and lies in turn, and play honest rounds; show progress on standard error.

    Raises:
        RunError: if sites refuse the adversary's honest rounds, so that their other refusals prove nothing.
    """
    jobs: list[_AttackJob | _Rounds] = [*_tries(tries, seed), *_rounds(rounds)]
    console = Console(stderr=True, highlight=False)
    console.print(f"{tries:,} attacks and {rounds:,} honest rounds, {len(SITES)} sites; seed {seed}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    refusals: Counter[str] = Counter()
    with bar:
        task = bar.add_task("tries and rounds", total=tries + rounds)
        for job, counts in zip(jobs, in_processes(os.cpu_count() or 1, few=0)(_work, jobs), strict=True):
            refusals.update(counts)
            bar.update(task, advance=job.count if isinstance(job, _Rounds) else len(job.names))
    played = Counter(_names(tries))
    return {
        "rows": [{"attack": name, "tries": played[name], "refused": refusals[name]} for name in _ATTACKS],
        "lies": [
            {"lie": name, "tries": played[name], "blamed": refusals[name], "others_blamed": refusals[_OTHERS + name]}
            for name in _LIES
        ],
        "honest_rounds": rounds,
        "false_alarms": refusals["honest"],
        "seed": seed,
    }


def held(report: dict[str, Any]) -> bool:
    """Whether sites refused all attacks and no honest round, and every liar was blamed and nobody else."""
    refused = all(row["refused"] == row["tries"] for row in report["rows"])
    blamed = all(row["blamed"] == row["tries"] and not row["others_blamed"] for row in report["lies"])
    return refused and blamed and not report["false_alarms"]


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [f"{'attack':<34}{'tries':>8}{'refused':>10}"]
    lines += [f"{row['attack']:<34}{row['tries']:>8,}{row['refused']:>10,}" for row in report["rows"]]
    lines += ["", f"{'lie of a member':<34}{'tries':>8}{'it is blamed':>16}{'others are':>14}"]
    lines += [
        f"{row['lie']:<34}{row['tries']:>8,}{row['blamed']:>16,}{row['others_blamed']:>14,}" for row in report["lies"]
    ]
    tries, refused = (sum(row[name] for row in report["rows"]) for name in ("tries", "refused"))
    lies, blamed, others = (sum(row[name] for row in report["lies"]) for name in ("tries", "blamed", "others_blamed"))
    rounds, alarms = report["honest_rounds"], report["false_alarms"]
    lines += ["", f"{'honest rounds':<34}{rounds:>8,}{alarms:>10,}", ""]
    if held(report):
        lines += [
            f"✓ every site refused all {tries:,} attacks, and none of {rounds:,} honest rounds",
            f"✓ each of {lies:,} false messages was blamed on its sender, and on no other member",
        ]
    else:
        lines += [
            f"✗ {tries - refused:,} of {tries:,} attacks succeeded, and {alarms:,} honest rounds were refused",
            f"✗ {lies - blamed:,} of {lies:,} false messages were not blamed on their sender; {others:,} on others",
        ]
    return "\n".join(lines)


def _names(count: int) -> list[str]:
    """Return `count` names of attacks and lies, in turn."""
    names = (*_ATTACKS, *_LIES)
    return [names[number % len(names)] for number in range(count)]


def _tries(count: int, seed: int) -> Iterator[_AttackJob]:
    todo = _names(count)
    for kind, names in ((_AttackJob, [name for name in todo if name in _ATTACKS]),
                        (_LieJob, [name for name in todo if name in _LIES])):  # fmt: skip
        for first in range(0, len(names), _BATCH):
            yield kind(tuple(names[first : first + _BATCH]), seed, first)


def _rounds(count: int) -> Iterator[_Rounds]:
    for masks, part in ((True, count // 2), (False, count - count // 2)):  # slower ones first: all end together
        for first in range(0, part, _BATCH):
            yield _Rounds(min(_BATCH, part - first), masks)


def _work(job: _AttackJob | _Rounds) -> Counter[str]:
    """Count refusals of each attack, blame for each lie or, as `honest`, refusals of honest rounds."""
    with quiet_agents():
        if isinstance(job, _Rounds):
            return _play_fair(job)
        return _lie(job) if isinstance(job, _LieJob) else _attack(job)


def _attack(job: _AttackJob) -> Counter[str]:
    rng = np.random.default_rng([job.seed, job.number])
    refused: Counter[str] = Counter()
    todo = list(job.names)
    while todo:
        with _folder() as folder:
            refused.update(_try_attacks(prepare_attacks(Path(folder), rng), todo))
    return refused


def _try_attacks(server: MaliciousServer, todo: list[str]) -> list[str]:
    """Make the tries and return the refused ones; if a try succeeds, leave the rest to another consortium."""
    refused: list[str] = []
    while todo:
        name = todo.pop(0)
        if not ATTACKS[name](server):
            return refused
        refused.append(name)
    for run in server.runs.values():
        server.play_fair(run)
    return refused


def _lie(job: _LieJob) -> Counter[str]:
    """Count the lies blamed on the liar in rounds that went on without it and, separately, others who were blamed."""
    rng = np.random.default_rng([job.seed, job.number])
    blamed: Counter[str] = Counter()
    with _folder() as folder:
        members = Members(make_federation(Path(folder)), settings("members", SITES, 1, colluding=1))
        for name in job.names:
            liar = str(rng.choice(SITES))
            blame = members.play(liar, LIARS[name])
            blamed[name] += blame.released and liar in blame.named
            blamed[_OTHERS + name] += len(blame.named - {liar})
    return blamed


def _play_fair(job: _Rounds) -> Counter[str]:
    with _folder() as folder:
        federation = make_federation(Path(folder))
        federation.sign(settings("honest", SITES, job.count, colluding=int(job.masks)))
        with suppress(CloisterError):  # missing rounds count as refused
            run_inline(federation)
        events = [event for event in read_events(federation) if event["event"] == "round"]
    fine = sum(event["released"] and not event["problems"] for event in events)
    return Counter(honest=job.count - fine)


def _folder() -> TemporaryDirectory[str]:
    memory = "/dev/shm"  # noqa: S108 - a new folder in it, private to this user
    return TemporaryDirectory(prefix="cloister-bench-", dir=memory if os.access(memory, os.W_OK) else None)
