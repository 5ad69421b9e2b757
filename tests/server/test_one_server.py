"""Of two servers on one folder, the second refuses to start."""

from dataclasses import replace
from pathlib import Path

import pytest

from cloister.local import start_server
from cloister.processes import Processes
from simulations.engine.results import read_events
from tests.federations import SETTINGS, FederationMaker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("agents"), pytest.mark.timeout(300)]

LONG = 90.0  # seconds


def test_two_processes_cannot_serve_one_run(make_federation: FederationMaker, tmp_path: Path) -> None:
    federation = make_federation(replace(SETTINGS, rounds=1))
    with Processes() as processes:
        start_server(processes, federation)
        second = processes.start("second", tmp_path / "log", "server", str(federation.server), str(federation.manifest))
        assert second.wait(LONG) == 1
        assert "another process serves the runs in this store; stop it first" in processes.tail("second")
        assert {event["event"] for event in read_events(federation)} <= {"started", "waiting"}
