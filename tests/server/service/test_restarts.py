"""A server's process ends with one run going on and one waiting: the next, here or elsewhere, finishes both."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from signal import SIGKILL, SIGTERM, Signals

import pytest

from cloister.processes import Processes
from privacy.run.manifest import open_run
from server.settings import read_consortium
from server.store.database import PASSWORD_VARIABLE
from server.store.store import Store, StoredRun
from simulations.engine.federation import Federation
from tests.client.data.sources.databases import PASSWORD, postgres
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
        runs = [store.submit(open_run(signed_document(federation, MASKED), roster)).digest for _ in range(2)]
        hold.touch()
        server = consortium.serve()
        await_condition(hold.with_suffix(MET).exists, LONG)
        hold.with_suffix(MET).unlink()
        assert [store.run(run).status for run in runs] == ["running", "waiting"]
        begun = time.monotonic()
        server.terminate() if signal is SIGTERM else server.kill()
        assert server.wait(LONG) == (130 if signal is SIGTERM else -SIGKILL)
        assert time.monotonic() - begun < 15  # loaded machines; the site is held for longer
        assert "Traceback" not in consortium.processes.tail("server", 1000)
        assert [store.run(run).status for run in runs] == ["running", "waiting"]
        server = consortium.serve()
        hold.unlink()
        await_condition(lambda: store.run(runs[1]).status == "finished", LONG)
        events = [[event["event"] for _, event in store.events(run)] for run in runs]
        ended = [store.run(run) for run in runs]
        server.terminate()
        server.wait(LONG)
    assert "resumed" in events[0]
    assert "resumed" not in events[1]
    assert all(events.count("round") == ROUNDS for events in events)
    assert all(charges_of(federation, site) - charges[site] == 2 * ROUNDS for site in SITES)
    for run in ended:
        assert (run.status, run.released) == ("finished", ROUNDS)
        assert models(federation, run) == consortium.model


def models(federation: Federation, run: StoredRun) -> set[bytes]:
    """The weights of the sites' models of a run."""
    files = [path / "models" / f"{run.name}-{run.digest[:8]}.safetensors" for path in federation.paths.values()]
    contents = [file.read_bytes() for file in files]
    return {data[8 + int.from_bytes(data[:8], "little") :] for data in contents}


def test_of_two_servers_on_one_postgresql_the_second_takes_over_in_mid_round(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, processes = consortium.federation, consortium.processes
    settings = federation.server / "consortium.toml"
    text, hold = settings.read_text(encoding="utf-8"), federation.paths["north"] / HOLD
    charges = {site: charges_of(federation, site) for site in SITES}
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with postgres() as url:
        settings.write_text(f'{text}[store]\nurl = "{url}"\n', encoding="utf-8")
        other = Path(copytree(federation.server, federation.folder / "server-2"))
        place = read_consortium(other)
        try:
            hold.touch()
            first = consortium.serve()
            with Store.open(place) as store:
                run = store.submit(open_run(signed_document(federation, MASKED), place.roster())).digest
                await_condition(hold.with_suffix(MET).exists, LONG)
                hold.with_suffix(MET).unlink()
                second = processes.start("second", other / "server.log", "server", str(other))
                processes.wait_for_line("second", "another server leads", LONG)
                first.kill()
                begun = time.monotonic()
                processes.wait_for_line("second", "agents may connect at port", 30)
                assert time.monotonic() - begun < 30
                hold.unlink()
                await_condition(lambda: store.run(run).status == "finished", LONG)
                ended = store.run(run)
            second.terminate()
            assert second.wait(LONG) == 130
        finally:
            hold.unlink(missing_ok=True)
            settings.write_text(text, encoding="utf-8")
    assert ended.released == ROUNDS
    assert models(federation, ended) == consortium.model
    assert all(charges_of(federation, site) - charges[site] == ROUNDS for site in SITES)
