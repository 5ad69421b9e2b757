"""A server's process ends, by SIGKILL or SIGTERM, with one run going on and one waiting: the next finishes both."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import pytest

from cloister.processes import Processes
from privacy.run.manifest import open_run
from server.settings import read_consortium
from server.store.store import Store
from simulations.engine.federation import Federation
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    await_condition,
    charges_of,
    run_with,
    signed_document,
    task_name,
)
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.strategies.test_killed_server import weights_of
from tests.studies import HOLD, MET, Held

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("agents"), pytest.mark.timeout(300)]

LONG = 90.0
ROUNDS = 2
MASKED = replace(
    SETTINGS, task=task_name(Held), rounds=ROUNDS, encryption=replace(SETTINGS.encryption, collusion_resistant=True)
)


@dataclass
class Consortium:
    """A federation with its agents."""

    federation: Federation
    processes: Processes
    model: frozenset[bytes]  # that an undisturbed run leaves at the sites
    served: int = 0

    def serve(self) -> subprocess.Popen[bytes]:
        """Start a server for the queue; return its process once agents may connect."""
        self.served += 1
        log = self.federation.server / f"server-{self.served}.log"
        process = self.processes.start("server", log, "server", str(self.federation.server))
        self.processes.wait_for_line("server", "agents may connect at port", LONG)
        return process


@pytest.fixture(scope="module")
def consortium(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    make_federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("restarts"))
    terms, address = replace(TERMS, tasks=(MASKED.task,)), f"localhost:{unused_port()}"
    undisturbed = make_federation(MASKED, dict.fromkeys(SITES, terms), name="undisturbed")
    run_with(undisturbed)
    federation = make_federation(MASKED, dict.fromkeys(SITES, terms), address)
    (federation.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    with ForkedAgents() as processes:
        for site, path in federation.paths.items():
            processes.start(site, path / "agent.log", "agent", str(path))
        yield Consortium(federation, processes, frozenset(weights_of(undisturbed).values()))


@pytest.mark.parametrize("signal", [SIGKILL, SIGTERM], ids=lambda signal: signal.name)
def test_both_runs_finish_with_the_models_and_charges_of_undisturbed_ones(
    consortium: Consortium, signal: Signals
) -> None:
    federation, place = consortium.federation, read_consortium(consortium.federation.server)
    charges, roster = {site: charges_of(federation, site) for site in SITES}, place.roster()
    hold = federation.paths["north"] / HOLD
    with Store.open(place) as store:
        runs = [store.submit(open_run(signed_document(federation, MASKED), roster), "ana").digest for _ in range(2)]
        hold.touch()
        server = consortium.serve()
        await_condition(hold.with_suffix(MET).exists, LONG)
        hold.with_suffix(MET).unlink()
        assert [store.run(run).status for run in runs] == ["running", "waiting"]
        begun = time.monotonic()
        server.terminate() if signal is SIGTERM else server.kill()
        assert server.wait(LONG) == (130 if signal is SIGTERM else -SIGKILL)
        assert time.monotonic() - begun < 5
        assert "Traceback" not in consortium.processes.tail("server", 1000)
        assert [store.run(run).status for run in runs] == ["running", "waiting"]
        server = consortium.serve()
        hold.unlink()
        await_condition(lambda: store.run(runs[1]).status == "finished", LONG)
        events = [[event["event"] for _, event in store.events(run)] for run in runs]
        ended = [store.run(run) for run in runs]
        server.terminate()
        server.wait(LONG)
    assert [(run.status, run.released) for run in ended] == [("finished", ROUNDS)] * 2
    assert "resumed" in events[0]
    assert "resumed" not in events[1]
    assert all(events.count("round") == ROUNDS for events in events)
    assert all(charges_of(federation, site) - charges[site] == 2 * ROUNDS for site in SITES)
    for run in ended:
        files = [path / "models" / f"{run.name}-{run.digest[:8]}.safetensors" for path in federation.paths.values()]
        contents = [file.read_bytes() for file in files]
        assert {data[8 + int.from_bytes(data[:8], "little") :] for data in contents} == consortium.model
