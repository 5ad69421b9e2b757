"""An agent of two processes among two ordinary ones: its worker dies, and torchrun starts it again."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cloister.local import start_server
from privacy.run.settings import Cohort, Training
from simulations.engine.federation import Federation
from simulations.engine.results import Results, read_results
from tests.federations import (
    SETTINGS,
    SIZES,
    TERMS,
    FederationMaker,
    await_condition,
    charges_of,
    rounds_of,
    task_name,
)
from tests.forked import Forked, ForkedAgents, run_command
from tests.ports import unused_port
from tests.studies import DYING, Mortal

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

SECONDS = 90.0  # at most; each process takes a few to load torch, many at once on a busy machine more
MEMBERS = ("north", "south", "east")
RUN = replace(
    SETTINGS,
    task=task_name(Mortal),
    rounds=3,
    training=Training(steps_per_round=4, sample_rate=0.5, learning_rate=0.1),
    cohort=Cohort(sizes={site: SIZES[site] for site in MEMBERS}, minimum=3, round_deadline_seconds=60.0),
)


@contextmanager
def torchrun(path: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes]]]:
    """Start a site's agent in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "-m", "cloister", "agent", str(path)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield (process,)
    finally:
        process.terminate()  # it ends the others
        process.wait(SECONDS)


@contextmanager
def two_forked(path: Path, log: Path) -> Iterator[tuple[Forked, Forked]]:
    """Fork the two processes that torchrun would start, the agent's first, in its environment."""
    port = unused_port()
    usual = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
             "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
    first, worker = (
        Forked(log.with_stem(f"{log.stem}-{rank}"), run_command, "agent", str(path),
               env={**usual, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    )  # fmt: skip
    try:
        yield first, worker
    finally:
        for process in (first, worker):
            process.terminate()
            process.wait(SECONDS)
        log.write_text(first.log.read_text() + worker.log.read_text())


@dataclass(frozen=True)
class Trained:
    """What was left of a run."""

    federation: Federation
    results: Results
    code: int  # of the processes whose worker died
    charged: int  # then
    updates: list[Path]  # updates, then
    output: tuple[str, str]  # by the first processes, and by those after them


@pytest.fixture(scope="module", params=[two_forked, pytest.param(torchrun, marks=pytest.mark.soak)])
def trained(request: pytest.FixtureRequest, federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("group"))(RUN)
    north, logs = federation.paths["north"], [federation.folder / name for name in ("first.log", "second.log")]
    (north / DYING).touch()
    with ForkedAgents() as processes:
        address = start_server(processes, federation)
        for site in MEMBERS:
            federation.write_settings(site, address, replace(TERMS, tasks=(RUN.task,)))
        for site in ("south", "east"):
            processes.start(site, federation.folder / f"{site}.log", "agent", str(federation.paths[site]))
        with two_forked(north, logs[0]) as (first, _):
            code = first.wait(SECONDS)
        charged, updates = charges_of(federation, "north"), list(north.glob("outbox/*.update"))
        (north / DYING).unlink()
        with request.param(north, logs[1]) as (second, *_):
            server = processes._children["server"][0]
            await_condition(lambda: server.poll() is not None or second.poll() is not None, SECONDS)
            assert server.poll() == 0, logs[1].read_text()
    return Trained(
        federation, read_results(federation), code, charged, updates, (logs[0].read_text(), logs[1].read_text())
    )


def test_an_agent_whose_worker_dies_ends_with_its_charge_and_without_an_update(trained: Trained) -> None:
    assert trained.code != 0
    assert trained.charged == 1
    assert trained.updates == []
    assert "what was charged stays charged" in trained.output[0]


def test_an_agent_that_is_started_again_trains_to_the_end(trained: Trained) -> None:
    released = [event for event in rounds_of(trained.federation) if event["released"]]
    assert [sorted(event["sites"]) for event in released] == [sorted(MEMBERS)] * len(released)
    assert len(released) >= RUN.rounds - 1
    assert len(set(trained.results.digests.values())) == 1
    assert trained.output[1].count("worker 1 took part in 4 steps") == len(released)


def test_only_the_first_process_connects_to_the_server(trained: Trained) -> None:
    for message in trained.output:
        assert message.count("online at") == 1
        assert message.count("worker 1 of 1, on cpu") == 1
    assert trained.output[1].count("left; nothing is lost") == 1
