"""The engine `flower`: its options and errors; and under soak, Ray, on one machine and on a cluster of two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch

from client.task.probe import Example
from cloister import CloisterError, simulate
from simulations.engine import ray_cluster
from simulations.engine.ray_cluster import Cluster
from simulations.pools import Pool
from simulations.study.on_flower import read_records, write_records
from tests.federations import await_condition
from tests.leftovers import end_those_that_name
from tests.ports import unused_port
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.data.inputs import Inputs

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
        ({"participation": 0.5}, "only the engine vectorised"),
    ],
)
def test_what_ray_cannot_do_is_said_before_it_starts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CloisterError, match=message):
        simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, **{"engine": "flower"} | options)


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
    write_records(tmp_path, Pool(inputs, targets))
    read, labels = read_records(tmp_path, Example(inputs, targets)).whole()
    assert repr(read) == repr(inputs)
    assert torch.equal(labels, targets)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_flowers_engine_arrives_at_the_same_model_and_stops_when_told(tmp_path: Path) -> None:
    inline = simulate(Sign, (INPUTS, TARGETS), PLAIN, sites=4, engine="inline")
    before = signal.getsignal(signal.SIGTERM)
    ends = [lambda row: "enough" if row["round"] == PLAIN["rounds"] else None]
    played = simulate(
        Sign, (INPUTS, TARGETS), PLAIN | {"rounds": 30}, sites=4, engine="flower", cpus_per_site=0.5, processes=1,
        callbacks=ends, folder=tmp_path,
    )  # fmt: skip
    assert (played.digest, played.stopped) == (inline.digest, "enough")
    assert "on Ray, which starts here, 0.5 CPU " in played.why
    assert signal.getsignal(signal.SIGTERM) is before


SCRIPT = """
import json, os, sys
from pathlib import Path

from cloister import simulate
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign


class Noting(Sign):
    def loss(self, outputs, targets):
        import ray
        if ray.is_initialized():
            Path(os.environ["SEEN"], ray.get_runtime_context().get_node_id()).touch()
        return super().loss(outputs, targets)


if __name__ == "__main__":
    played = [
        simulate(Noting, (INPUTS, TARGETS), PLAIN, sites=6, engine=engine, **options)
        for engine, options in (("inline", {}), ("flower", {"ray_address": sys.argv[1]}))
    ]
    print(json.dumps([result.digest for result in played]))
    for options in ({"cpus_per_site": 2}, {"gpus_per_site": 1}):
        try:
            simulate(Noting, (INPUTS, TARGETS), PLAIN, sites=6, engine="flower", ray_address=sys.argv[1], **options)
        except Exception as error:
            print(type(error).__name__, error)
"""


@contextmanager
def running(command: Sequence[object], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run `ray COMMAND`, which stays, in a group of its own; wait until it has started."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *map(str, command)], env=environment, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        await_condition(lambda: b"Ray runtime started" in log.read_bytes() or process.poll() is not None, 120.0)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_ray_cluster_of_two_machines_shares_the_work(tmp_path: Path) -> None:
    seen, script, port = tmp_path / "seen", tmp_path / "study.py", unused_port()
    seen.mkdir()
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {
        **os.environ, "SEEN": str(seen), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    one = ("--num-cpus", 1, "--num-gpus", 0, "--block", "--dashboard-agent-listen-port")
    with TemporaryDirectory(prefix="ray-") as short:  # Ray's sockets are in it, whose paths must be short
        head = ("start", "--head", "--port", port, "--include-dashboard", "false", "--temp-dir", short,
                "--ray-client-server-port", unused_port(), *one, unused_port())  # fmt: skip
        further = ("start", "--address", f"127.0.0.1:{port}", *one, unused_port())
        try:
            with running(head, tmp_path / "head", environment), running(further, tmp_path / "further", environment):
                finished = subprocess.run(
                    [sys.executable, script, f"127.0.0.1:{port}"], env=environment, cwd=tmp_path, capture_output=True,
                    text=True, timeout=600, check=False,
                )  # fmt: skip
        finally:
            end_those_that_name(seen)
    assert finished.returncode == 0, finished.stderr[-5000:]
    digests, *errors = finished.stdout.strip().splitlines()
    assert len(set(json.loads(digests))) == 1, digests
    assert len(list(seen.iterdir())) == 2, [path.name for path in seen.iterdir()]
    assert ["none of Ray's machines has 2 CPUs" in errors[0], "1 CPU and 1 GPU for a site" in errors[1]] == [
        True,
        True,
    ], errors
