"""A federation of real processes, which a case disturbs: a server, four agents, and bad lines between them."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloister.local import start_server
from cloister.processes import Processes
from privacy.errors import RunError, StorageError
from privacy.failpoints import VARIABLE
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation
from simulations.engine.results import opened_store, read_results
from tests.federations import SETTINGS, SITES, TERMS, FederationMaker, charges_of, run_with, share_keys
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.reliability.lines import Line, until
from tests.reliability.outcomes import check, same
from tests.strategies.test_killed_server import weights_of

LONG = 90.0  # seconds, for whatever takes a second
ALL = replace(SETTINGS, cohort=replace(SETTINGS.cohort, minimum=len(SITES)))
"""Rounds that wait for all sites, without noise and with a seed: they end in the same model, whatever happens."""


def plain(rounds: int) -> RunSettings:
    """A run without masks."""
    return replace(ALL, rounds=rounds)


def masked(rounds: int) -> RunSettings:
    """A run with masks."""
    return replace(plain(rounds), encryption=replace(ALL.encryption, collusion_resistant=True))


KEYS = "keys"  # the folder of a federation that has only its keys


class Stage:
    """A federation whose server and agents are started and killed at will."""

    def __init__(
        self, make: FederationMaker, settings: RunSettings, processes: Processes, *, lines: bool = False
    ) -> None:
        """Make it; with `lines`, there is one before each agent."""
        self.processes, self.settings, self._make, self._lined = processes, settings, make, lines
        self.port = unused_port()
        address = f"localhost:{self.port}"
        self.federation = make(settings, dict.fromkeys(SITES, replace(TERMS, tasks=(settings.task,))), address)
        self._listen()
        self.lines: dict[str, Line] = {}
        self._store: tuple[Any, str] | None = None
        self._open, self._events = ExitStack(), list[dict[str, Any]]()
        if lines:
            self.lines = {site: Line(self.port) for site in SITES}
            for site, line in self.lines.items():
                self.write_settings(site, f"localhost:{line.port}")

    def write_settings(self, site: str, address: str) -> None:
        """Have a site's agent dial this address."""
        self.federation.write_settings(site, address, replace(TERMS, tasks=(self.settings.task,)))

    def _listen(self) -> None:
        path = self.federation.server / "consortium.toml"
        lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("listen")]
        place = next((at for at, line in enumerate(lines) if line.startswith("[")), len(lines))
        lines.insert(place, f'listen = "localhost:{self.port}"')
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")

    # --- Processes --------------------------------------------------------------------------------------------------

    def start_server(self, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the server; return once it listens, or has ended."""
        with suppress(RunError):
            start_server(self.processes, self.federation, env)
        return self.process("server")

    def start_agent(self, site: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a site's agent."""
        path = self.federation.paths[site]
        return self.processes.start(site, path / "agent.log", "agent", str(path), env=env)

    def start_agents(self) -> None:
        """Start all agents; return once they wait for a server, or have one."""
        for site in SITES:
            self.start_agent(site)

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """A server's or an agent's process."""
        return self.processes._children[name][0]

    def log(self, name: str) -> str:
        """What a process has printed."""
        return self.processes._children[name][1].read_text(encoding="utf-8", errors="replace")

    def kill(self, name: str) -> None:
        """End a process by SIGKILL."""
        self.process(name).kill()
        self.process(name).wait(LONG)

    def close(self) -> None:
        """End all lines, and look at the store no more."""
        self._open.close()
        for line in self.lines.values():
            line.close()

    # --- What happens -----------------------------------------------------------------------------------------------

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of the run so far."""
        if self._store is None and (self.federation.server / "store.sqlite").exists():
            try:
                self._store = self._open.enter_context(opened_store(self.federation))
            except StorageError:  # the server is just making it
                return []
        if self._store is not None:
            store, run = self._store
            self._events += [event for _, event in store.events(run, after=len(self._events))]
        return self._events

    @property
    def ended(self) -> list[dict[str, Any]]:
        """The events of the rounds that are over."""
        return [event for event in self.events if event["event"] == "round"]

    @property
    def rounds(self) -> int:
        """How many rounds are over."""
        return len(self.ended)

    def await_rounds(self, count: int, seconds: float = LONG) -> float:
        """Wait until so many rounds are over, or the server has ended; return after how many seconds."""
        server = self.process("server")
        waited = until(lambda: self.rounds >= count or server.poll() is not None, seconds)
        check(waited is not None, f"round {count} was not over within {seconds:g} s:\n{self.processes.tail('server')}")
        return waited or 0.0

    def await_end(self, seconds: float = 3 * LONG) -> None:
        """Wait until the run has ended well."""
        with suppress(subprocess.TimeoutExpired):
            self.process("server").wait(seconds)
        code = self.process("server").poll()
        check(code == 0, f"the server ended with {code}:\n{self.processes.tail('server', 20)}")

    def check_whole(self, extra: int = 0) -> int:
        """Check that nothing shows in a finished run that it was disturbed; return how many charges are extra.

        Args:
            extra: the most charges by which a site's ledger may be above what it released.
        """
        rounds, events = self.settings.rounds, self.ended
        same("the rounds", [event["round"] for event in events], list(range(1, rounds + 1)))
        lost = [event["round"] for event in events if not event["released"]]
        check(not lost, f"rounds that released nothing: {lost}")
        same("the rounds that the server counts", read_results(self.federation).rounds, rounds)
        same("contributors", {tuple(sorted(event["sites"])) for event in events}, {tuple(sorted(SITES))})
        charges = {site: charges_of(self.federation, site) for site in SITES}
        check(all(rounds <= charge <= rounds + extra for charge in charges.values()),
              f"charges of {rounds} rounds: {charges}")  # fmt: skip
        check(weights_of(self.federation) == self.undisturbed(), "the model is not that of the undisturbed run")
        return max(charges.values()) - rounds

    def undisturbed(self) -> dict[str, bytes]:
        """The weights at each site after the same run without disturbances."""
        federation = self._make(self.settings, name="undisturbed")
        run_with(federation)
        return weights_of(federation)


@contextmanager
def staged(
    folder: Path, settings: RunSettings, *, lines: bool = False, ceremony: bool = False, forked: bool = True
) -> Iterator[Stage]:
    """Make a stage; at the end, end its processes.

    Args:
        folder: where to make it.
        settings: the run.
        lines: whether there is a line before each agent.
        ceremony: whether the sites have no common keys yet.
        forked: whether the server starts in no time; otherwise as an operator starts it.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(ForkedAgents(server=forked))
        make = FederationMaker(_keys(folder, shared=not ceremony), folder)
        stage = Stage(make, settings, processes, lines=lines)
        stack.callback(stage.close)
        yield stage


def dying_at(name: str, count: int, error: str = "") -> dict[str, str]:
    """The environment in which a process dies when it passes a failpoint for so many times, or its disk fails there."""
    return {VARIABLE: ":".join([name, str(count), *([error] if error else [])])}


def was_killed(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has ended by SIGKILL."""
    return process.poll() == -signal.SIGKILL


def peak(process: subprocess.Popen[bytes]) -> int:
    """The most memory of a process since `forget_peak`, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10


def forget_peak(process: subprocess.Popen[bytes]) -> None:
    """Count a process's most memory anew."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="ascii")


def _keys(folder: Path, *, shared: bool) -> Path:
    """A federation that has only its keys, with those common to all sites or without; made once for a folder."""
    place = folder.parent / f"{KEYS}-{'shared' if shared else 'apart'}-{os.getpid()}"
    if not place.exists():
        federation = Federation.create(place, SITES)
        if shared:
            share_keys(federation)
    return place
