"""Run a federation's parties as processes on this machine, with the commands that real parties would use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from privacy.errors import RunError
from simulations.engine.results import opened_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloister.processes import Processes
    from simulations.engine.federation import Federation, SiteTerms

_START_SECONDS = 60.0
_SILENCE_SECONDS = 300.0  # the longest wait for an event; enough for many agents to start on few cores
_POLL = 0.05


def start_server(processes: Processes, federation: Federation, env: Mapping[str, str] | None = None) -> str:
    """Start the server, with more in its environment, and return the address that agents dial."""
    log = federation.server / "server.log"
    processes.start("server", log, "server", str(federation.server), str(federation.manifest), env=env)
    return "localhost:" + processes.wait_for_line("server", "agents may connect at port ", _START_SECONDS)


def start_agents(processes: Processes, federation: Federation, address: str, terms: SiteTerms) -> None:
    """Write every site's settings and start its agent."""
    for site, path in federation.paths.items():
        federation.write_settings(site, address, terms)
        processes.start(site, path / "agent.log", "agent", str(path))


def start_agents_together(
    processes: Processes, federation: Federation, address: str, terms: SiteTerms, count: int
) -> list[str]:
    """Write every site's settings and start `count` processes, each with the agents of some; return their names."""
    for site in federation.sites:
        federation.write_settings(site, address, terms)
    names = [f"agents-{number}" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        paths = [str(federation.paths[site]) for site in federation.sites[number::count]]
        processes.start(name, federation.folder / f"{name}.log", "agent", *paths)
    return names


def follow(processes: Processes, federation: Federation, show: Callable[[dict[str, Any]], None]) -> None:
    """Show the server's events until the run is over.

    Raises:
        RunError: if a process ends before the run, or nothing happens for minutes.
    """
    shown, last = 0, time.monotonic()
    with opened_store(federation) as (store, run):
        while True:
            ended = processes.ended()
            for number, event in store.events(run, after=shown):
                show(event)
                shown, last = number, time.monotonic()
                if event["event"] in {"finished", "failed", "stopped"}:
                    return
            for name in ended:
                msg = f"{name} ended before the run did; its log ends with:\n{processes.tail(name)}"
                raise RunError(msg)
            if time.monotonic() - last > _SILENCE_SECONDS:
                msg = f"nothing happened for {_SILENCE_SECONDS:.0f} s; the logs are in {federation.folder}/*/*.log"
                raise RunError(msg)
            store.wait_for_events(run, shown, _POLL)
