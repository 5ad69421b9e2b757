"""`cloister bench round`: the time of a round without training.

Runs a real federation on this machine: `cloister server` and three or more `cloister agent` processes, with mutual TLS,
signatures, ledgers on disk, and encrypted updates of a model of any size. The sum is delivered to every site, which
decrypts it and stores its new model. The server's clock counts, from planning a round until all sites have reported
their models.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path
from socket import socket
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cloister.local import follow, start_agents, start_server
from cloister.processes import Processes
from privacy.at_rest.protection import protect
from privacy.at_rest.secrets import KEY_FILE_VARIABLE, read_key_file
from privacy.errors import RunError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from privacy.storage import write_atomically
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_results
from simulations.tasks.idle import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from simulations.engine.results import Results

ENCRYPTED = "encrypted at rest"
WARM_UP = 3  # rounds, for connections, caches and first use of memory pages
_LARGEST_SIZE = 280  # records that the first site declares; the others declare fewer, so that weights differ
_END_SECONDS = 60.0  # for a server to exit after its run
_TASK = "simulations.tasks.idle:Idle"
_RECORDS = "0\n" * 20


def measure(parameters: int, rounds: int, sites: int) -> dict[str, Any]:
    """Run a federation with and without masks in turn, for `rounds` rounds each after a warm-up.

    Raises:
        RunError: if a round failed, or the sites do not end with the same model.
    """
    kinds = {
        "with masks": Encryption(update_bound=1.0),
        "without": Encryption(update_bound=1.0, collusion_resistant=False),
    }
    reports, peaks = in_turn(kinds, parameters, rounds, sites)
    report, unmasked = reports.values()
    ratio = round(report["median_ms"] / unmasked["median_ms"], 3)
    return report | {"unmasked_median_ms": unmasked["median_ms"], "masked_to_unmasked": ratio} | peaks


def measure_at_rest(parameters: int, rounds: int, sites: int) -> dict[str, Any]:
    """Run two federations in turn, of which one has its sites' folders encrypted, for `rounds` rounds each.

    Raises:
        RunError: if a round failed, or the sites do not end with the same model.
    """
    kinds = {"in the clear": Encryption(update_bound=1.0), ENCRYPTED: Encryption(update_bound=1.0)}
    reports, peaks = in_turn(kinds, parameters, rounds, sites)
    plain, report = reports.values()
    ratio = round(report["median_ms"] / plain["median_ms"], 3)
    return report | {"clear_median_ms": plain["median_ms"], "encrypted_to_clear": ratio} | peaks


def in_turn(
    kinds: Mapping[str, Encryption], parameters: int, rounds: int, sites: int
) -> tuple[dict[str, dict[str, Any]], dict[str, int | None]]:
    """Run a federation with several encryption settings in turn; return a report of each, and peak memory.

    The kind `ENCRYPTED` has a federation of its own, whose sites' folders are encrypted.

    Raises:
        RunError: if a round failed, or the sites do not end with the same model.
    """
    console = Console(stderr=True, highlight=False)
    blocks = [size for size in (rounds - rounds // 2, rounds // 2) if size]
    console.print(
        f"{' and '.join(kinds)} in turn, each with {WARM_UP} warm-up rounds, then {' and '.join(map(str, blocks))}: "
        f"{parameters:,} parameters, {sites} agents"
    )
    with TemporaryDirectory(prefix="cloister-bench-") as folder, environment_variable(PARAMETERS, parameters):
        total = len(kinds) * sum(size + WARM_UP for size in blocks)
        with ExitStack() as stack:
            key_file = Path(folder) / "sites.key"
            write_atomically(key_file, os.urandom(32))
            stack.enter_context(environment_variable(KEY_FILE_VARIABLE, key_file))
            advance = stack.enter_context(bar(console, total))
            benches = {
                encrypted: _Bench(
                    _prepare(Path(folder) / str(encrypted), sites, encrypted=encrypted),
                    stack.enter_context(Processes()),
                    advance,
                )
                for encrypted in {kind == ENCRYPTED for kind in kinds}
            }
            results: dict[str, list[Results]] = {kind: [] for kind in kinds}
            for size in blocks:
                for kind, encryption in kinds.items():
                    results[kind].append(benches[kind == ENCRYPTED].run(size, encryption))
            reports = {
                kind: _summarise(runs, benches[kind == ENCRYPTED].sites, parameters) for kind, runs in results.items()
            }
    return reports, benches[max(benches)].peaks


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    spread = f"from {report['min_ms']:.0f}, 95 % below {report['p95_ms']:.0f}"
    site, server = (_megabytes(report[f"{who}_peak_bytes"]) for who in ("site", "server"))
    if "clear_median_ms" in report:
        compared = (
            f"in the clear  {report['clear_median_ms']:.0f} ms; encrypted {report['encrypted_to_clear']:.2f} times as "
            "long"
        )
    else:
        compared = (
            f"no masks      {report['unmasked_median_ms']:.0f} ms; masked {report['masked_to_unmasked']:.2f} times as "
            "long"
        )
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} agents, TLS, encryption and masks on, no training",
        "",
        f"a round       {report['median_ms']:.0f} ms: the median of {report['rounds']} ({spread})",
        compared,
        f"a site sends  {report['bytes_up']:,.0f} bytes and gets {report['bytes_down']:,.0f}",
        f"memory        {site} at a site, {server} at the server: the peak, with libraries",
        f"and ends with the same model as the others: sha256 {report['model'][:16]}…",
    ]
    return "\n".join(lines)


def _megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e6:,.0f} MB"


def _prepare(folder: Path, sites: int, *, encrypted: bool) -> Federation:
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    federation = Federation.create(folder, names, consortium="bench")
    # Runs follow each other, each with its own server, at an address that the agents know.
    settings = federation.server / "consortium.toml"
    settings.write_text(settings.read_text().replace(":0", f":{_free_port()}"))
    for path in federation.paths.values():
        (path / SiteTerms.file).write_text(_RECORDS, encoding="utf-8")
        if encrypted:
            protect(path, read_key_file(Path(os.environ[KEY_FILE_VARIABLE])), ())
    return federation


def _free_port() -> int:
    with socket() as free:
        free.bind(("localhost", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def bar(console: Console, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar of finished rounds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def environment_variable(name: str, value: object) -> Iterator[None]:
    """Set a variable of the environment for agents that start within this context."""
    before = os.environ.get(name)
    os.environ[name] = str(value)
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


class _Bench:
    """One federation's agents, with a new server for each run."""

    def __init__(self, federation: Federation, processes: Processes, advance: Callable[[], None]) -> None:
        self._federation, self._processes, self._advance = federation, processes, advance
        self._started = False
        self.sites = federation.sites
        self.peaks: dict[str, int | None] = {"site_peak_bytes": None, "server_peak_bytes": None}

    def run(self, rounds: int, encryption: Encryption) -> Results:
        """Take the federation through a run.

        Raises:
            RunError: if it failed; quotes an agent's log, because the logs are deleted with the folder.
        """
        sizes = {site: _LARGEST_SIZE // number for number, site in enumerate(self._federation.sites, start=1)}
        self._federation.sign(
            RunSettings(
                name="idle",
                task=_TASK,
                rounds=rounds + WARM_UP,
                training=Training(steps_per_round=0, sample_rate=0.1, learning_rate=1.0),
                privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
                encryption=encryption,
                cohort=Cohort(sizes=sizes),
            )
        )
        address = start_server(self._processes, self._federation)
        if not self._started:
            terms = SiteTerms(
                (_TASK,), epsilon=inf, maximum_epsilon=inf, disclose=("epsilon",), collusion_resistant=False
            )
            start_agents(self._processes, self._federation, address, terms)
            self._started = True
        follow(self._processes, self._federation, self._show)
        self._processes.wait("server", _END_SECONDS)
        return read_results(self._federation)

    def _show(self, event: dict[str, Any]) -> None:
        if event["event"] == "failed":
            agent = self._federation.sites[0]
            msg = f"{event['reason']}\nthe log of {agent}'s agent ends with:\n{self._processes.tail(agent)}"
            raise RunError(msg)
        if event["event"] == "round":
            self._advance()
            for name, who in (("site_peak_bytes", self._federation.sites), ("server_peak_bytes", ("server",))):
                peaks = [self.peaks[name], *map(self._processes.peak_memory, who)]
                self.peaks[name] = max((peak for peak in peaks if peak), default=None)


def _summarise(runs: list[Results], sites: tuple[str, ...], parameters: int) -> dict[str, Any]:
    measured = []
    for results in runs:
        events = [event for event in results.events if event["event"] == "round"]
        for event in events:
            if not event["released"] or set(event["sites"]) != set(sites):
                msg = (
                    f"round {event['round']} ran without a site, so its time is not representative: {event['problems']}"
                )
                raise RunError(msg)
        if set(results.digests) != set(sites) or len(set(results.digests.values())) != 1:
            msg = f"the sites do not all have the same model: {results.digests}"
            raise RunError(msg)
        measured += events[WARM_UP:]
    milliseconds = [1000 * event["seconds"] for event in measured]
    return {
        "rounds": len(measured),
        "warm_up": WARM_UP * len(runs),
        "median_ms": round(float(np.median(milliseconds)), 1),
        "p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
        "min_ms": round(min(milliseconds), 1),
        "parameters": parameters,
        "sites": len(sites),
        "bytes_up": measured[-1]["bytes_up"] / len(sites),
        "bytes_down": measured[-1]["bytes_down"] / len(sites),
        "model": next(iter(runs[-1].digests.values())),
    }
