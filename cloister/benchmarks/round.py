"""`cloister bench round`: what a round takes when nobody trains.

A real federation on this machine: `cloister server` and `cloister agent`, three times or more, with mutual TLS,
signatures, ledgers on disk, encrypted updates of a model of any size, and the sum delivered to every site, which
decrypts it and stores its new model. The time is the server's: from planning a round until all sites have said which
model they have.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cloister.local import follow, start_agents, start_server
from cloister.processes import Processes
from privacy.errors import RunError
from privacy.manifest import Cohort, Encryption, Privacy, RunSettings, Training
from simulations.federation import Federation, SiteTerms
from simulations.idle import PARAMETERS
from simulations.results import read_results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulations.results import Results

WARM_UP = 3  # rounds: connections, caches and a first look at every page of memory
_LARGEST_SIZE = 280  # records that the first site declares; the others fewer, so that weights differ
_TASK = "simulations.idle:Idle"
_RECORDS = "0\n" * 20


def measure(parameters: int, rounds: int, sites: int, *, masks: bool) -> dict[str, Any]:
    """Run a federation for so many rounds, and some before that do not count.

    Raises:
        RunError: if a round failed, or the sites do not end with the same model.
    """
    console = Console(stderr=True, highlight=False)
    console.print(f"{WARM_UP} rounds to warm up, then {rounds}: {parameters:,} parameters, {sites} agents")
    with TemporaryDirectory(prefix="cloister-bench-") as folder:
        federation = _prepare(Path(folder), rounds + WARM_UP, sites, masks=masks)
        with _model_size(parameters):
            memory = _run(federation, rounds + WARM_UP, console, masks=masks)
        return _summarise(read_results(federation), federation.sites, parameters, rounds) | memory


def table(report: dict[str, Any]) -> str:
    """Write a report for people."""
    spread = f"from {report['min_ms']:.0f}, 95 % below {report['p95_ms']:.0f}"
    site, server = (_megabytes(report[f"{who}_peak_bytes"]) for who in ("site", "server"))
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} agents, TLS and encryption on, no training",
        "",
        f"a round       {report['median_ms']:.0f} ms: the median of {report['rounds']} ({spread})",
        f"a site sends  {report['bytes_up']:,.0f} bytes and gets {report['bytes_down']:,.0f}",
        f"memory        {site} at a site, {server} at the server, at most, with libraries",
        f"and ends with the same model as the others: sha256 {report['model'][:16]}…",
    ]
    return "\n".join(lines)


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"


def _prepare(folder: Path, rounds: int, sites: int, *, masks: bool) -> Federation:
    sizes = {f"site-{number}": _LARGEST_SIZE // number for number in range(1, sites + 1)}
    federation = Federation.create(folder, tuple(sizes), consortium="bench")
    federation.sign(
        RunSettings(
            name="idle",
            task=_TASK,
            rounds=rounds,
            training=Training(steps_per_round=0, sample_rate=0.1, learning_rate=1.0),
            privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
            encryption=Encryption(update_bound=1.0, collusion_resistant=masks),
            cohort=Cohort(sizes=sizes),
        )
    )
    for path in federation.paths.values():
        (path / SiteTerms.file).write_text(_RECORDS, encoding="utf-8")
    return federation


@contextmanager
def _model_size(parameters: int) -> Iterator[None]:
    """Tell the agents that start meanwhile how large the model is."""
    before = os.environ.get(PARAMETERS)
    os.environ[PARAMETERS] = str(parameters)
    try:
        yield
    finally:
        del os.environ[PARAMETERS]
        if before is not None:
            os.environ[PARAMETERS] = before


def _run(federation: Federation, rounds: int, console: Console, *, masks: bool) -> dict[str, int | None]:
    """Run the federation to its end; return how much memory, in bytes, an agent and the server took at most.

    Raises:
        RunError: if it failed; quotes the log of an agent, since all logs go with the folder.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    peaks: dict[str, int | None] = {}
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with Processes() as processes, bar:
        task = bar.add_task("starting", total=rounds)
        address = start_server(processes, federation)
        start_agents(processes, federation, address, SiteTerms((_TASK,), share=("epsilon",), collusion_resistant=masks))

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "failed":
                agent = federation.sites[0]
                msg = f"{event['reason']}\nthe log of {agent}'s agent ends with:\n{processes.tail(agent)}"
                raise RunError(msg)
            if event["event"] == "round":
                bar.update(task, advance=1, description="rounds")
                agents = [processes.peak_memory(site) for site in federation.sites]
                peaks["site_peak_bytes"] = max((each for each in agents if each), default=None)
                peaks["server_peak_bytes"] = processes.peak_memory("server")

        follow(processes, federation, show)
    return peaks


def _summarise(results: Results, sites: tuple[str, ...], parameters: int, rounds: int) -> dict[str, Any]:
    events = [event for event in results.events if event["event"] == "round"]
    for event in events:
        if not event["released"] or set(event["sites"]) != set(sites):
            msg = f"round {event['round']} went without a site, so that its time says nothing: {event['problems']}"
            raise RunError(msg)
    if set(results.digests) != set(sites) or len(set(results.digests.values())) != 1:
        msg = f"the sites do not end with the same model: {results.digests}"
        raise RunError(msg)
    measured = events[-rounds:]
    milliseconds = [1000 * event["seconds"] for event in measured]
    return {
        "rounds": rounds,
        "warm_up": len(events) - rounds,
        "median_ms": round(float(np.median(milliseconds)), 1),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
        "min_ms": round(min(milliseconds), 1),
        "parameters": parameters,
        "sites": len(sites),
        "bytes_up": measured[-1]["bytes_up"] / len(sites),
        "bytes_down": measured[-1]["bytes_down"] / len(sites),
        "model": next(iter(results.digests.values())),
    }
