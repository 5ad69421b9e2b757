"""The training benchmark trains what it says, with every mode on the same batches. Never times."""

import json
import os
import sys
from typing import Any

import pytest
import torch

from cloister.benchmarks.training import measure, table
from cloister.benchmarks.training_times import MODES, Course, Mode, on_cores
from cloister.benchmarks.zoo import SPECIMENS
from tests.forked import start_forking

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("processes")]  # a process for each row

PARAMETERS = {"mlp": 203_530, "cnn-small": 26_010, "cnn-large": 421_642, "gru": 2_258}


OURS: tuple[Mode, ...] = ("plain", "auto")  # the others take minutes


@pytest.fixture(scope="module", params=[OURS, pytest.param(MODES, marks=pytest.mark.soak)], ids=["ours", "all"])
def modes(request: pytest.FixtureRequest) -> tuple[Mode, ...]:
    modes_: tuple[Mode, ...] = request.param
    return modes_


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.soak)], ids=["one-core", "two-cores"])
def report(request: pytest.FixtureRequest, modes: tuple[Mode, ...]) -> dict[str, Any]:
    start_forking()
    return measure(1, modes, models=["mlp"], cores=request.param)


def test_every_mode_gets_a_row_of_plain_numbers(report: dict[str, Any], modes: tuple[Mode, ...]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert [(row["batch"], row["mode"]) for row in report["rows"]] == [(b, mode) for b in (32, 256) for mode in modes]
    for row in report["rows"]:
        assert row["seconds"] > 0
        assert row["ratio"] > 0
        assert row["peak_mb"] >= 0
        assert 1 <= row["threads"] <= report["cores"]
    assert [row["chosen"] for row in report["rows"] if row["mode"] == "auto"] == ["bookkeeping"] * 2


@pytest.mark.soak
@pytest.mark.parametrize("modes", [MODES], ids=["all"], indirect=True)
def test_memory_counts_the_gradients_that_opacus_writes_out(report: dict[str, Any]) -> None:
    peaks = {row["mode"]: row["peak_mb"] for row in report["rows"] if row["batch"] == 256}
    assert peaks["hooks"] > 4 * 200 * PARAMETERS["mlp"] / 1e6  # float32, of more than 200 records
    assert peaks["auto"] < peaks["hooks"] / 4


def test_the_table_has_a_line_for_every_row(report: dict[str, Any]) -> None:
    lines = table(report).splitlines()
    assert len(lines) == len(report["rows"]) + 3
    assert max(len(line) for line in lines) <= 80
    assert "bookkeeping" in table(report)
    assert ("processor seconds" in lines[-1]) == (report["cores"] == 1)


def test_the_table_says_how_many_threads_were_better_and_fits_the_terminal(report: dict[str, Any]) -> None:
    rows = [row | {"threads": 16} for row in report["rows"]]
    lines = table(report | {"rows": rows, "cores": 16, "repeats": 100}).splitlines()
    assert "auto, 16" in lines[2]
    assert "16 cores" in lines[-1]
    assert max(len(line) for line in lines) <= 80


@pytest.mark.skipif(sys.platform != "linux", reason="needs sched_setaffinity")
def test_torch_and_the_process_have_the_cores_that_are_named_and_get_back_what_they_had() -> None:
    before = os.sched_getaffinity(0), torch.get_num_threads()
    for cores in (1, 2):
        with on_cores(cores, threads=cores):
            assert torch.get_num_threads() == cores
            assert len(os.sched_getaffinity(0)) == min(cores, len(before[0]))
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_the_models_have_the_stated_sizes() -> None:
    for name, count in PARAMETERS.items():
        assert sum(parameter.numel() for parameter in SPECIMENS[name].model().parameters()) == count
    sizes = [sum(p.numel() for p in SPECIMENS[name].model().parameters()) for name in SPECIMENS if "trans" in name]
    assert sizes[0] == sizes[1] == 164_098


def test_plain_training_gets_the_batches_that_private_training_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "client.dpsgd.training_steps._look", lambda *_: None
    )  # it computes some records of a batch again
    course, seen = Course("mlp", 32), []

    class Watching(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
            seen.append(inputs.detach())
            return super().forward(inputs)

    with torch.random.fork_rng(devices=[]):
        course.__dict__["_model"] = torch.nn.Sequential(torch.nn.Flatten(), Watching(784, 10))
        course.seconds("plain")
    plain = list(seen)
    seen.clear()
    course.seconds("hooks")
    drawn = [pair for pair in seen if len(pair) > 4][-course.steps :]  # before, modes were compared
    assert len(plain) == course.steps
    assert all(torch.equal(*pair) for pair in zip(plain, drawn, strict=True))


def test_models_that_opacus_cannot_train_are_reported() -> None:
    course = Course("transformer", 256)
    assert "cannot be used for this model" in course.refused("hooks")
    assert course.chosen().gradients == "vmap"
    assert Course("transformer-linear", 256).chosen().gradients == "bookkeeping"


def test_the_gru_is_trained_by_book_keeping() -> None:
    assert Course("gru", 256).chosen().gradients == "bookkeeping"
