"""A server's process is killed by SIGKILL in the middle of a masked run, at random, again and again: it goes on.

`tests/strategies/test_killed_server.py` kills at every place of the code; here, agents lose their connections.
"""

import random
import subprocess
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from cloister.local import start_server
from cloister.processes import Processes
from simulations.engine.federation import Federation
from simulations.engine.results import read_events, read_results
from tests.federations import SETTINGS, SITES, TERMS, FederationMaker, await_condition, charges_of, rounds_of, run_with
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.strategies.test_killed_server import weights_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("agents"), pytest.mark.timeout(300)]

LONG = 90.0  # seconds
MASKED = replace(SETTINGS.encryption, collusion_resistant=True)


@pytest.mark.parametrize(
    ("kills", "rounds"),
    [(3, 4), pytest.param(100, 120, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])],
)
def test_a_killed_server_loses_no_round_and_has_nothing_charged_twice(
    make_federation: FederationMaker, kills: int, rounds: int
) -> None:
    settings = replace(SETTINGS, rounds=rounds, encryption=MASKED)
    undisturbed = make_federation(settings, name="undisturbed")
    run_with(undisturbed)

    address = f"localhost:{unused_port()}"
    federation = make_federation(settings, dict.fromkeys(SITES, TERMS), address)
    (federation.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    chance = random.Random(kills)  # noqa: S311 - the same in every run
    with ForkedAgents() as processes:
        for site in SITES:
            processes.start(site, federation.paths[site] / "agent.log", "agent", str(federation.paths[site]))
        for _ in range(kills):
            server = serve_a_round(processes, federation)
            Event().wait(chance.uniform(0, 1.5 * rounds / kills * seconds_of_a_round(federation)))
            server.kill()
            server.wait(LONG)
        server = begin(processes, federation)
        assert server.wait(LONG) == 0, processes.tail("server", 30)
    assert weights_of(federation) == weights_of(undisturbed)
    assert {charges_of(federation, site) for site in SITES} == {rounds}
    assert read_results(federation).rounds == rounds
    assert all(event["released"] for event in rounds_of(federation))


def begin(processes: Processes, federation: Federation) -> subprocess.Popen[bytes]:
    start_server(processes, federation)
    return processes._children["server"][0]


def serve_a_round(processes: Processes, federation: Federation) -> subprocess.Popen[bytes]:
    """Start a server, and wait until another round is over, or the run."""
    ended, server = len(rounds_of(federation)), begin(processes, federation)
    await_condition(lambda: len(rounds_of(federation)) > ended or server.poll() is not None, LONG)
    return server


def seconds_of_a_round(federation: Federation) -> float:
    return float(min(event["seconds"] for event in rounds_of(federation)))


def test_two_processes_cannot_serve_one_run(make_federation: FederationMaker, tmp_path: Path) -> None:
    federation = make_federation(replace(SETTINGS, rounds=1))
    with Processes() as processes:
        start_server(processes, federation)
        second = processes.start("second", tmp_path / "log", "server", str(federation.server), str(federation.manifest))
        assert second.wait(LONG) == 1
        assert "another process serves the runs in this store; stop it first" in processes.tail("second")
        assert {event["event"] for event in read_events(federation)} <= {"started", "waiting"}
