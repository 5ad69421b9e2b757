"""`cloister bench api`: how much requests to the API slow a round.

Runs a real federation on this machine, without training: `cloister server` with an API, and `cloister agent` processes.
Blocks of rounds alternate, with requests and without, so that what else this machine does falls on both. The requests
come from people who are signed in, over TLS, from this process; the server's clock counts.
"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from client.joining import finish, prepare
from cloister.benchmarks.round import bar, environment_variable
from cloister.client import Client
from cloister.local import start_agents, start_server
from cloister.processes import Processes
from privacy.errors import RunError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from server.coordinator import Coordinator
from simulations.engine.federation import Federation, SiteTerms
from simulations.tasks.idle import PARAMETERS
from transport.channel import authority_context
from transport.pki import read_certificate

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence
    from typing import Self

PEOPLE = 4
"""Who make the requests: each may make only so many."""

WARM_UP = 3  # rounds
_TASK = "simulations.tasks.idle:Idle"
_BLOCKS = 8  # of rounds, half of them with requests
_SECONDS = 60.0


def measure(parameters: int, rounds: int, sites: int, rate: float) -> dict[str, Any]:
    """Run rounds with and without requests in turn.

    Args:
        parameters: of the model.
        rounds: to measure, in all.
        sites: how many agents.
        rate: requests a second.

    Raises:
        RunError: if a round failed, or a request was refused.
    """
    block = max(1, rounds // _BLOCKS)
    console = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="cloister-bench-") as name, environment_variable(PARAMETERS, parameters):
        federation, people = _prepare(Path(name), sites, WARM_UP + block * _BLOCKS)
        with Processes() as processes, bar(console, WARM_UP + block * _BLOCKS) as advance:
            address = start_server(processes, federation)
            api = "localhost:" + processes.wait_for_line("server", "people may sign in at port ", _SECONDS)
            terms = SiteTerms((_TASK,), epsilon=inf, maximum_epsilon=inf, collusion_resistant=False)
            start_agents(processes, federation, address, terms)
            with Client(federation.folder / "coordinator", api) as client, _Load(people, api, rate) as load:
                run = next(client.runs()).digest
                quiet, loaded = list[float](), list[float]()
                for event in client.follow(run):
                    if event["event"] == "failed":
                        raise RunError(event["reason"])
                    if event["event"] != "round":
                        continue
                    advance()
                    measured = event["round"] - WARM_UP
                    if measured > 0 and (measured - 1) % block:  # the first of a block has begun in the one before
                        (loaded if load.on else quiet).append(event["seconds"] * 1000)
                    load.on = measured >= 0 and bool(measured // block % 2)
            processes.wait("server", _SECONDS)
    if load.failures:
        msg = f"of {load.answered + len(load.failures)} requests, some failed: {load.failures[0]}"
        raise RunError(msg)
    return {
        "parameters": parameters,
        "sites": sites,
        "rounds": len(quiet) + len(loaded),
        "requests": load.answered,
        "requests_per_second": round(load.answered / load.seconds, 1),
        "request_median_ms": round(statistics.median(load.times) * 1000, 2),
        "quiet_median_ms": round(statistics.median(quiet), 1),
        "loaded_median_ms": round(statistics.median(loaded), 1),
        "loaded_to_quiet": round(statistics.median(loaded) / statistics.median(quiet), 3),
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    slower = f"{report['loaded_median_ms']:.0f} ms, {report['loaded_to_quiet']:.2f} times as long"
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} agents, {report['rounds']} rounds",
        f"a round       {report['quiet_median_ms']:.0f} ms; at {report['requests_per_second']:.0f} requests/s {slower}",
        f"a request     {report['request_median_ms']:.1f} ms: the median of {report['requests']:,}",
    ]
    return "\n".join(lines)


def _prepare(folder: Path, sites: int, rounds: int) -> tuple[Federation, list[Path]]:
    """Make a consortium with an API, people who look at runs, and a signed run."""
    federation = Federation.create(folder, tuple(f"site-{number}" for number in range(1, sites + 1)), "bench")
    settings = federation.server / "consortium.toml"
    settings.write_text(settings.read_text() + '\n[api]\nlisten = "localhost:0"\n')
    for path in federation.paths.values():
        (path / SiteTerms.file).write_text("0\n" * 20)
    coordinator, people = Coordinator(folder / "coordinator"), [folder / f"person-{i}" for i in range(PEOPLE)]
    requests = [prepare(path, coordinator.invite(path.name, role="auditor")) for path in people]
    for approval in coordinator.approve(requests)[1]:
        finish(folder / approval.name, approval.welcome)
    federation.sign(
        RunSettings(
            name="idle",
            task=_TASK,
            rounds=rounds,
            training=Training(steps_per_round=0, sample_rate=0.1, learning_rate=1.0),
            privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
            encryption=Encryption(update_bound=1.0),
            cohort=Cohort(sizes=dict.fromkeys(federation.sites, 100)),
        )
    )
    return federation, people


class _Load:
    """Requests at a fixed rate while `on`, each person's over one connection."""

    def __init__(self, people: Sequence[Path], api: str, rate: float) -> None:
        self.on = False
        self.answered, self.failures, self.times = 0, list[str](), list[float]()
        self.seconds = 0.0  # for which it was on
        self._pause, self._ended, self._turn = len(people) / rate, threading.Event(), threading.Lock()
        self._threads = []
        for path in people:
            with Client(path, api) as client:
                client.login()
                token, context = client.token, authority_context(_authority(path))
            self._threads.append(threading.Thread(target=self._ask, args=(api, token, context), daemon=True))
        self._threads.append(threading.Thread(target=self._count, daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, api: str, token: str, context: ssl.SSLContext) -> None:
        headers, line = {"Authorization": f"Bearer {token}"}, http.client.HTTPSConnection(api, context=context)
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - 1)
            if not self.on:
                continue
            began = time.monotonic()
            try:
                line.request("GET", "/v1/runs", headers=headers)
                answer = line.getresponse()
                answer.read()
                failed = "" if answer.status == http.HTTPStatus.OK else f"status {answer.status}"
            except (OSError, http.client.HTTPException) as error:  # as when the server closed an idle connection
                line.close()
                failed = "" if isinstance(error, http.client.RemoteDisconnected) else repr(error)
                if not failed:
                    continue
            with self._turn:
                if failed:
                    self.failures.append(failed)
                else:
                    self.answered += 1
                    self.times.append(time.monotonic() - began)
        line.close()

    def _count(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(0.01):
            now = time.monotonic()
            self.seconds += (now - last) * self.on
            last = now


def _authority(person: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return read_certificate(person / "keys" / "authority.pem").public_bytes(Encoding.DER)
