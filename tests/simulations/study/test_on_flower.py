"""The engine `flower`: its options and errors; and under soak, Ray, on one machine and on a cluster of two."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from flwr.app import Context, RecordDict
from typing_extensions import override

from client.settings import read_site
from client.task.probe import Example
from cloister import CloisterError, simulate
from simulations.engine import ray_cluster
from simulations.engine.inline import InlineGrid
from simulations.engine.ray_cluster import Cluster
from simulations.engine.stored_site import RECORDS, StoredSite, read_records, write_records
from simulations.pools import Pool
from simulations.study.checkpoints import Checkpoint, Checkpoints
from simulations.study.on_flower import OnFlower
from simulations.study.runner import play, prepare
from tests.federations import await_condition
from tests.leftovers import end_those_that_name
from tests.ports import unused_port
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.data.inputs import Inputs
    from client.site import Site
    from simulations.engine.federation import Federation
    from simulations.study.protocol import OpenGrid
    from simulations.study.runner import Study
    from simulations.study.simulation import Simulation

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "auto", "ray_address": "127.0.0.1:6379"}, "must be asked for"),
        ({"engine": "inline", "cpus_per_site": 2}, "must be asked for"),
        ({"ray_address": "nowhere"}, "ray_address: .*write host:port"),
        ({"ray_address": "ray://127.0.0.1:10001"}, "leave out ray://"),
        ({"cpus_per_site": 0}, "cpus_per_site = 0"),
        ({"cpus_per_site": 1.5}, "a whole number, or a fraction"),
        ({"cpus_per_site": float("nan")}, "cpus_per_site = nan"),
        ({"gpus_per_site": -1}, "gpus_per_site = -1"),
        ({"cpus_per_site": 3, "processes": 2}, "Ray would have 2 CPUs here"),
    ],
)
def test_what_ray_cannot_do_is_said_before_it_starts(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"engine": "flower"} | options
    with pytest.raises(CloisterError, match=message):
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, **given)


def test_a_cluster_that_does_not_answer_is_named() -> None:
    address = f"127.0.0.1:{unused_port()}"
    with pytest.raises(CloisterError, match=f"no Ray cluster answers at {address}.*ray start --head"):
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, engine="flower", ray_address=address)


def test_without_ray_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None if name == "ray" else name)
    with pytest.raises(CloisterError, match=r"pip install 'cloister\[flower\]'"):
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, engine="flower")


def test_it_is_said_where_sites_are_played() -> None:
    assert str(Cluster()) == "on Ray, which starts here, 1 CPU for a site at work"
    assert str(Cluster("auto", 2, 0.5)) == "on the Ray cluster auto, 2 CPUs and 0.5 GPU for a site at work"


@pytest.mark.parametrize(
    "inputs",
    [torch.rand(3, 2), (torch.rand(3, 2).T.contiguous().T, torch.arange(3)), {"mask": torch.ones(3) > 0}],
    ids=["tensor", "tuple", "dict"],
)
def test_records_are_the_same_in_another_process(inputs: Inputs, tmp_path: Path) -> None:
    targets = torch.arange(3)
    write_records(Pool(inputs, targets), tmp_path / RECORDS)
    read, labels = read_records(tmp_path / RECORDS, Example(inputs, targets)).whole()
    assert repr(read) == repr(inputs)
    assert torch.equal(labels, targets)


ABSENT: dict[str, Any] = {"dropout": 0.1, "participation": 0.8, "site_seconds": "exponential:30", "deadline": 90.0}


class Pickled(OnFlower):
    """The engine with what Ray would send to its processes, in this one."""

    first_node = 1000

    @override
    @contextmanager
    def _opened(self, simulation: Simulation, federation: Federation) -> Iterator[tuple[Site, OpenGrid]]:
        app = pickle.loads(pickle.dumps(self.stored(simulation, federation)))  # noqa: S301 - just pickled
        contexts = {
            self.first_node + place: Context(1, self.first_node + place, {"partition-id": place}, RecordDict(), {})
            for place in range(len(simulation.sites))
        }
        first = StoredSite(read_site(federation.paths[simulation.sites[0]]))
        yield first, lambda run_id: nullcontext(InlineGrid(run_id, contexts, app))


@pytest.mark.parametrize("population", [{}, ABSENT], ids=["whole", "absent"])
def test_sites_that_are_opened_from_their_folders_arrive_at_the_same_model(
    population: dict[str, Any], tmp_path: Path
) -> None:
    sites = {site: (INPUTS[place::6], TARGETS[place::6]) for place, site in enumerate("fdbace")}
    study = prepare(Sign, sites, PLAIN, engine="inline", folder=tmp_path / "held", **population)
    engines = study.engine, Pickled(Cluster())
    played = [
        list(engine.play(replace(study.simulation, folder=tmp_path / engine.name), Checkpoint(0, [])))
        for engine in engines
    ]
    assert any(len(each.sites) < len(sites) for each in played[0]) == bool(population)
    for one, other in zip(*played, strict=True):
        assert (one.model.vector == other.model.vector).all()
        assert (one.sites.tolist(), one.charged.tolist()) == (other.sites.tolist(), other.charged.tolist())
        assert one.problems == other.problems


def test_new_nodes_go_on_after_a_checkpoint(tmp_path: Path) -> None:
    def studied(folder: Path, first_node: int) -> Study:
        study = prepare(
            Sign, (INPUTS, TARGETS), PLAIN, sites=6, engine="inline", folder=folder, resumable=True, **ABSENT
        )
        engine = Pickled(Cluster())
        engine.first_node = first_node
        return replace(study, engine=engine)

    *_, (whole, _) = play(studied(tmp_path / "whole", 1000))
    here = Checkpoints.opened(tmp_path / "here", "a digest")
    begun = play(studied(tmp_path / "here" / "federation", 1000), checkpoints=here)
    with closing(begun):  # type: ignore[type-var]  # a generator
        assert [next(begun)[1]["round"], next(begun)[1]["round"]] == [1, 2]
    *_, (resumed, last) = play(studied(tmp_path / "here" / "federation", 2000), checkpoints=here)
    assert last["round"] == 3
    assert (resumed.model.vector == whole.model.vector).all()
    assert [row["problems"] for row in resumed.rows] == [row["problems"] for row in whole.rows]


SCRIPT = """
import json, os, signal, sys
from pathlib import Path

from cloister import simulate
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign


class Noting(Sign):
    def loss(self, outputs, targets):
        import ray
        if ray.is_initialized():
            Path(os.environ["SEEN"], ray.get_runtime_context().get_node_id()).touch()
        return super().loss(outputs, targets)


def tried(engine, stop=None, kill=None, **options):
    def ended(row):
        if row["round"] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return "enough" if row["round"] == stop else None

    try:
        callbacks = [ended]
        result = simulate(Noting, (INPUTS, TARGETS), PLAIN, sites=6, engine=engine, callbacks=callbacks, **options)
        return f"{len(result.rows)} rounds: {result.stopped}" if stop else result.digest
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    population, played = json.loads(sys.argv[1])
    print(json.dumps([tried("inline", **population), *(tried("flower", **population, **each) for each in played)]))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


class Script:
    """A study whose task is defined in a script; it notes the machines on which sites train."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, folder / "seen"
        self.seen.mkdir()
        (folder / "study.py").write_text(SCRIPT, encoding="utf-8")
        self.environment = {
            **os.environ, "SEEN": str(self.seen), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip

    def run(self, options: Sequence[dict[str, Any]], population: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """Play `inline` and then `flower` with each of these options, both over the same population."""
        return subprocess.run(
            [sys.executable, "study.py", json.dumps([population, options])], env=self.environment, cwd=self.folder,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip

    def play(self, *options: dict[str, Any], **population: Any) -> list[str]:  # noqa: ANN401 - as `simulate` takes them
        """Return what `run` prints: each model's digest, or the error."""
        finished = self.run(options, population)
        assert finished.returncode == 0, finished.stderr[-5000:]
        digests: list[str] = json.loads(finished.stdout.splitlines()[-1])
        return digests

    @contextmanager
    def ray(self, *command: object) -> Iterator[None]:
        """Run `ray start`, which stays; wait until it has started."""
        log = self.folder / f"{command[0]}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *map(str, command), "--block",
                 "--num-cpus", "1", "--num-gpus", "0", "--min-worker-port", "0",
                 "--max-worker-port", "0", "--dashboard-agent-listen-port", str(unused_port())],
                env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            await_condition(lambda: b"Ray runtime started" in log.read_bytes() or process.poll() is not None, 120.0)
            assert process.poll() is None, log.read_text(encoding="utf-8")
            yield
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    made = Script(tmp_path)
    yield made
    end_those_that_name(made.seen)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_flowers_engine_arrives_at_the_same_model(script: Script) -> None:
    inline, played, stopped = script.play({"cpus_per_site": 0.5, "processes": 1}, {"stop": 1})
    assert (played, stopped) == (inline, "1 rounds: enough")
    assert len(list(script.seen.iterdir())) == 2  # Ray started twice


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_killed_simulation_on_ray_goes_on_and_gives_the_same_model(script: Script) -> None:
    killed = script.run([{"checkpoint": "here", "kill": 2}], ABSENT)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-5000:]
    inline, resumed = script.play({"checkpoint": "here"}, **ABSENT)
    assert resumed == inline


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_ray_cluster_of_two_machines_shares_the_work(script: Script) -> None:
    port = unused_port()
    address = f"127.0.0.1:{port}"
    with TemporaryDirectory(prefix="ray-") as short:  # Ray's sockets are in it, whose paths must be short
        head = ("--head", "--port", port, "--include-dashboard", "false", "--temp-dir", short,
                "--ray-client-server-port", unused_port())  # fmt: skip
        with script.ray(*head), script.ray("--address", address):
            inline, played, cpus, gpus = script.play(
                {"ray_address": address},
                {"ray_address": address, "cpus_per_site": 2},
                {"ray_address": address, "gpus_per_site": 0.5},
            )
    assert played == inline
    assert len(list(script.seen.iterdir())) == 2
    assert ("none of Ray's machines has 2 CPUs for a site" in cpus, cpus.count(" has 1 CPU")) == (True, 2), cpus
    assert "none of Ray's machines has 1 CPU and 0.5 GPU for a site" in gpus
