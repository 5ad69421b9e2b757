"""Two processes train what one would train, and whatever befalls one of them, the other ends and says so."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.dpsgd.process_group import gather, private
from client.dpsgd.torchrun import Place, own_place
from privacy.errors import ConfigError, DeviceError
from tests.client.group_members import CASES, MISHAP, run
from tests.forked import Forked
from tests.ports import unused_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]

SECONDS = 180.0  # at most


@contextmanager
def members(action: str, folder: Path) -> Iterator[list[Forked]]:
    """Start two processes as torchrun does, but that each may end for itself."""
    port = unused_port()
    usual = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
             "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}  # fmt: skip
    # As clusters' images do, where there is another interface than this machine's own.
    usual["GLOO_SOCKET_IFNAME"] = next((name for _, name in socket.if_nameindex() if name != "lo"), "lo")
    started = [
        Forked(folder / f"{rank}.log", run, action, str(folder), env={**usual, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait(SECONDS)


def ended(process: Forked) -> tuple[int, str]:
    code = process.wait(SECONDS)
    return code, process.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("group")
    with members("all cases", folder) as both:
        both_ended = [ended(process) for process in both]  # a worker's last order is to end
    assert [code for code, _ in both_ended] == [0, 0], both_ended
    return folder


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_model_that_one_trains_with_the_same_sample_and_noise(results: Path, name: str) -> None:
    first, worker = (read(results / f"{rank}.npz")[name] for rank in (0, 1))
    alone = CASES[name].train()
    torch.testing.assert_close(torch.from_numpy(first), alone, rtol=1e-5, atol=1e-5)
    assert (first == worker).all()


def test_noise_is_added_once(results: Path) -> None:
    drawn = read(results / "noise-0.npz")["noise"]
    case = CASES["two dimensions"]
    model, _ = case.prepared()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    moved = (drawn - before).ravel() / (0.5 * 1.0 * 0.5)  # rate, σ, C; the size is one
    error = moved.size**-0.5
    assert error < 0.015
    assert abs(moved.std() - 1.0) < 6 * error  # twice would be 1.41
    assert abs(moved.mean()) < 6 * error


def test_a_worker_listens_on_this_machine_only(results: Path) -> None:
    assert (results / "listening-1").read_text() == "0100007F"  # 127.0.0.1


@pytest.mark.parametrize(
    "mishap", ["dies", *(pytest.param(name, marks=pytest.mark.soak) for name in ("stops", "fails"))]
)
def test_a_round_fails_at_the_first_process_when_its_worker(mishap: str, tmp_path: Path) -> None:
    with members(f"worker {mishap}", tmp_path) as (first, _):
        code, message = ended(first)
    assert code == 1
    assert message.startswith("process 0 of 2 lost another process (")
    assert "what was charged stays charged" in message
    note = json.loads((tmp_path / "0.json").read_text(encoding="utf-8"))
    assert note["lost"]
    assert "DeviceError" in note["error"]


def test_a_bug_at_the_first_process_ends_both(tmp_path: Path) -> None:
    with members("first fails", tmp_path) as both:
        (code, message), (workers_code, workers_said) = map(ended, both)
    assert (code, workers_code) == (1, 1)
    assert message.endswith("ValueError: a bug of the task's\n")
    assert "process 1 of 2 lost another process" in workers_said
    assert json.loads((tmp_path / "0.json").read_text(encoding="utf-8"))["lost"]


def test_a_worker_ends_when_the_first_process_dies(tmp_path: Path) -> None:
    with members("first dies", tmp_path) as both:
        (code, _), (workers_code, message) = map(ended, both)
    assert (code, workers_code) == (MISHAP, 1), message
    assert "process 1 of 2 lost another process" in message


def test_processes_with_other_records_refuse_to_train(tmp_path: Path) -> None:
    with members("other records", tmp_path) as both:
        for process in both:
            code, message = ended(process)
            assert code == 1
            assert "read different records" in message


def test_processes_meet_only_in_a_folder_of_their_own_account(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert private(tmp_path) == tmp_path
    tmp_path.chmod(0o750)
    with pytest.raises(DeviceError, match="to which other accounts have access"):
        private(tmp_path)


def test_a_process_without_torchrun_is_alone() -> None:
    assert own_place() == Place(rank=0, size=1, device=0)
    with gather(torch.device("cpu")) as group:
        assert group is None


def test_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
                        "WORLD_SIZE": "4"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 of 4 processes on this machine"):
        own_place()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert own_place() == Place(rank=1, size=2, device=1)
