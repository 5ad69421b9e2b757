"""`cloister bench api`: how much requests to the API slow a round.

Runs a real federation on this machine, without training: `cloister server` with an API, and `cloister agent` processes.
Blocks of rounds alternate, with requests and without, so that what else this machine does falls on both. The requests
are what a page that shows a run asks for, by people who are signed in, over TLS, from this process; the server's clock
counts. Server, agents and those who ask share this machine's cores, and where few cores are busy with rounds anyway,
whatever takes processor time slows them: so the report says how much of it a request took, at either end.
"""

from __future__ import annotations

import re
import socket
import statistics
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import cycle
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
from transport.address import read_address
from transport.channel import authority_context
from transport.pki import read_certificate

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence
    from typing import Self

PEOPLE = 8
"""Who make the requests: each may make only so many, and waits for an answer before asking again."""

PATHS = ("/v1/runs", "/v1/runs/{run}", "/v1/runs/{run}/events?after={last}", "/v1/status")
"""What they ask for, in turn."""

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
                quiet, loaded = _Rounds(), _Rounds()
                spent, asked = 0.0, 0
                for last, event in enumerate(client.follow(run), start=1):
                    if event["event"] == "failed":
                        raise RunError(event["reason"])
                    if event["event"] != "round":
                        continue
                    advance()
                    before, spent = spent, processes.processor_seconds("server") or 0.0
                    answered, asked = asked, load.answered
                    measured = event["round"] - WARM_UP
                    if measured > 0 and (measured - 1) % block:  # the first of a block has begun in the one before
                        rounds_so = loaded if load.on else quiet
                        rounds_so.milliseconds.append(event["seconds"] * 1000)
                        rounds_so.processor_seconds += spent - before
                        rounds_so.requests += asked - answered
                    load.ask_about(run, last)
                    load.on = measured >= 0 and bool(measured // block % 2)
            processes.wait("server", _SECONDS)
    if load.failures:
        msg = f"of {load.answered + len(load.failures)} requests, some failed: {load.failures[0]}"
        raise RunError(msg)
    if not loaded.requests:
        msg = f"no request was answered in {loaded.count} rounds: they are too short; measure more, or at a higher rate"
        raise RunError(msg)
    more = loaded.processor_seconds / loaded.count - quiet.processor_seconds / quiet.count
    return {
        "parameters": parameters,
        "sites": sites,
        "rounds": quiet.count + loaded.count,
        "requests": load.answered,
        "requests_per_second": round(load.answered / load.seconds, 1),
        "request_median_ms": round(statistics.median(load.times) * 1000, 2),
        "server_processor_ms": round(more * 1000 / (loaded.requests / loaded.count), 2),
        "client_processor_ms": round(load.processor_seconds * 1000 / load.answered, 2),
        "quiet_median_ms": round(quiet.median, 1),
        "loaded_median_ms": round(loaded.median, 1),
        "loaded_to_quiet": round(loaded.median / quiet.median, 3),
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    slower = f"{report['loaded_median_ms']:.0f} ms, {report['loaded_to_quiet']:.2f} times as long"
    server, asking = f"{report['server_processor_ms']:.2f}", f"{report['client_processor_ms']:.2f}"
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} agents, {report['rounds']} rounds",
        f"a round       {report['quiet_median_ms']:.0f} ms; at {report['requests_per_second']:.0f} requests/s {slower}",
        f"a request     {report['request_median_ms']:.1f} ms: the median of {report['requests']:,}",
        f"processor     {server} ms a request at the server, {asking} ms where it comes from",
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


@dataclass
class _Rounds:
    """Rounds of one kind."""

    milliseconds: list[float] = field(default_factory=list)
    processor_seconds: float = 0.0  # of the server
    requests: int = 0

    @property
    def count(self) -> int:
        return len(self.milliseconds)

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


class _Load:
    """Requests at a fixed rate while `on`, each person's over one connection."""

    def __init__(self, people: Sequence[Path], api: str, rate: float) -> None:
        self.on = False
        self.answered, self.failures, self.times = 0, list[str](), list[float]()
        self.seconds = 0.0  # for which it was on
        self.processor_seconds = 0.0  # that asking took
        self._paths: Iterator[str] = cycle(("/v1/runs",))
        self._pause, self._ended, self._turn = len(people) / rate, threading.Event(), threading.Lock()
        self._threads = []
        for path in people:
            with Client(path, api) as client:
                client.login()
                asking = _Asking(api, client.token, authority_context(_authority(path)))
            self._threads.append(threading.Thread(target=self._ask, args=(asking,), daemon=True))
        self._threads.append(threading.Thread(target=self._count, daemon=True))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def ask_about(self, run: str, last: int) -> None:
        """From now on, ask for how a run stands, and for its events after the last one."""
        self._paths = cycle(path.format(run=run, last=last) for path in PATHS)

    def _ask(self, asking: _Asking) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._pause, time.monotonic() - 1)
            if not self.on:
                continue
            with self._turn:
                path = next(self._paths)
            began, spent = time.monotonic(), time.thread_time()
            try:
                status, failed = asking.get(path), ""
                if status != HTTPStatus.OK:
                    failed = f"{path}: status {status}"
            except ConnectionError:  # the server closed an idle connection
                continue
            except (OSError, ValueError) as error:
                failed = repr(error)
            with self._turn:
                self.processor_seconds += time.thread_time() - spent
                if failed:
                    self.failures.append(failed)
                else:
                    self.answered += 1
                    self.times.append(time.monotonic() - began)
        asking.close()

    def _count(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(0.01):
            now = time.monotonic()
            self.seconds += (now - last) * self.on
            last = now


class _Asking:
    """One person's requests over one connection, with little work: what it costs to ask is not to be measured."""

    def __init__(self, api: str, token: str, context: ssl.SSLContext) -> None:
        self._address, self._context = read_address(api), context
        self._head = f"HTTP/1.1\r\nHost: {api}\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._line: ssl.SSLSocket | None = None

    def get(self, path: str) -> int:
        """Ask for a path; return the answer's status.

        Raises:
            ConnectionError: if the server closed the connection; the next request makes another.
            OSError: if it cannot be reached.
            ValueError: if it answers in another way than it used to.
        """
        if self._line is None:
            host, port = self._address.host, self._address.port
            self._line = self._context.wrap_socket(
                socket.create_connection((host, port), _SECONDS), server_hostname=host
            )
        try:
            self._line.sendall(f"GET {path} {self._head}".encode())
            return self._read(self._line)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _read(self, line: ssl.SSLSocket) -> int:
        data = b""
        while part := line.recv(1 << 16):
            data += part
            head, complete, body = data.partition(b"\r\n\r\n")
            if not complete:
                continue
            size = _SIZE.search(head)
            if size is None:
                msg = f"an answer without a length: {head[:100]!r}"
                raise ValueError(msg)
            if len(body) >= int(size[1]):
                return int(head[9:12])
        raise ConnectionResetError


_SIZE = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)


def _authority(person: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return read_certificate(person / "keys" / "authority.pem").public_bytes(Encoding.DER)
