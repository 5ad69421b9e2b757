"""Canaries: what they show depends on nobody's records, and any task can have them beside its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.sources.options import Csv
from client.data.sources.registry import Source
from client.dpsgd.training_steps import way_to_train
from client.settings import Computing
from client.task.task import Task
from cloister.audit.canaries import SETUP, WEIGHT, Canaries, Role, set_up
from cloister.audit.local_run import Scratch
from privacy.errors import DataError, TaskError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from tests.client.data.sources.cohorts import HEADER, ROWS, TARGETS, Ward
from tests.federations import task_name

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

COUNT = 20
TASK = "tests.cloister.audit.test_canaries:Words"


class Words(Task):
    """Records that are whole numbers in a table `(3, 2)` each, and outputs `(4, 2)`."""

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(24, 8), nn.Unflatten(1, (4, 2)))

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        rows = [[int(number) for number in line.split()] for line in path.read_text().splitlines()]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3, 2), torch.ones(len(rows), 4, 2)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(24).remainder(10).reshape(4, 3, 2), torch.arange(32.0).reshape(4, 4, 2)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)


class Scaled(nn.Module):
    """A parameter that belongs to no layer of torch's, so that gradients are mapped over records."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 2))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class ScaledWords(Words):
    """The same with outputs that are scaled."""

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(super().model(), Scaled())


def _final(
    folder: Path, records: str, included: list[int], role: Role = "beside", task: str = TASK
) -> tuple[dict[str, NDArray[np.float32]], Canaries]:
    """Train one site for two rounds of three steps on all records, without noise; return the model at the end."""
    folder.mkdir()
    (folder / "words.txt").write_text(records)
    settings = RunSettings(
        name="audit", task="cloister.audit.canaries:Canaries", rounds=2,
        privacy=Privacy(max_grad_norm=0.5, noise_multiplier=0.0),
        cohort=Cohort({"first": 10, "second": 10}, minimum=2),
        training=Training(steps_per_round=3, sample_rate=1.0, learning_rate=1.0),
        encryption=Encryption(update_bound=1.0, profile="precise", collusion_resistant=False),
    )  # fmt: skip
    with set_up(folder / "canaries.json", task, Source(folder / "words.txt"), COUNT):
        scratch = Scratch.create(folder / "scratch", settings, "included", "cpu")
        site = scratch.sites["first"]
        (site.place.folder / "included").write_text("\n".join(map(str, included)))
        watch = site.study(settings.task).task
        assert isinstance(watch, Canaries)
        site.study(settings.task).prepare(settings)
        assert site.check_records()  # which tries the task on some of them, before batches are noted
        watch.role = role
        with watch.watched():
            *_, model = scratch.rounds("first")
    return model.layout.unflatten(model.vector), watch


def test_a_canary_adds_one_clipping_norm_per_step_for_any_records(tmp_path: Path) -> None:
    included = [0, 3, 19]
    one, watch = _final(tmp_path / "one", "1 2 3 4 5 6\n", included)
    many, _ = _final(tmp_path / "many", "9 9 9 9 9 9\n" * 30 + "0 1 2 3 4 5\n", included)
    expected = np.zeros(COUNT)
    expected[included] = -6 * 0.5 / 10  # six steps, C over the expected size of a batch
    assert one[WEIGHT][0] == pytest.approx(expected, abs=1e-5)
    assert many[WEIGHT][0] == pytest.approx(expected, abs=1e-5)
    assert watch.batches == [set(included)] * 6


def test_canaries_do_not_touch_the_other_task_s_parameters(tmp_path: Path) -> None:
    without, _ = _final(tmp_path / "without", "1 2 3 4 5 6\n", [])
    beside, _ = _final(tmp_path / "beside", "1 2 3 4 5 6\n", [0, 3, 19])
    for name in without.keys() - {WEIGHT}:
        assert beside[name] == pytest.approx(without[name], abs=1e-5)


def test_silent_canaries_leave_a_model_as_it_is(tmp_path: Path) -> None:
    moved, watch = _final(tmp_path / "silent", "1 2 3 4 5 6\n", [0, 3, 19], "silent")
    before = watch.model()
    assert watch.batches == [{0, 3, 19}] * 6
    assert not moved[WEIGHT].any()
    silent, _ = _final(tmp_path / "none", "9 8 7 6 5 4\n", [], "silent")
    assert [(name, tensor.shape) for name, tensor in moved.items()] == [
        (name, tuple(parameter.shape)) for name, parameter in before.named_parameters()
    ]
    assert all((moved[name] == silent[name]).all() for name in moved)


def test_loud_canaries_move_all_layers_by_one_clipping_norm_in_all_and_records_move_nothing(tmp_path: Path) -> None:
    quiet, _ = _final(tmp_path / "quiet", "1 2 3 4 5 6\n", [], "loud")
    silent, _ = _final(tmp_path / "silent", "1 2 3 4 5 6\n", [], "silent")
    assert all(quiet[name] == pytest.approx(silent[name], abs=1e-5) for name in quiet)
    loud, _ = _final(tmp_path / "loud", "1 2 3 4 5 6\n", [3], "loud")
    moved = {name: loud[name] - silent[name] for name in loud}
    assert all(tensor.any() for tensor in moved.values())
    length = np.sqrt(sum(float((tensor.astype(np.float64) ** 2).sum()) for tensor in moved.values()))
    assert 0.9 <= length / (6 * 0.5 / 10) <= 1.0 + 1e-4  # the gradient turns a little as the model moves


def test_steps_without_canaries_are_counted(tmp_path: Path) -> None:
    _, watch = _final(tmp_path / "none", "1 2 3 4 5 6\n", [])
    assert watch.batches == [set()] * 6


def test_canaries_work_under_vmap(tmp_path: Path) -> None:
    _, watch = _final(
        tmp_path / "mapped", "1 2 3 4 5 6\n", [0, 3], task="tests.cloister.audit.test_canaries:ScaledWords"
    )
    assert way_to_train(watch, watch.model(), Computing()).gradients == "vmap"
    assert watch.batches == [{0, 3}] * 6


def test_only_the_audit_can_make_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETUP, raising=False)
    with pytest.raises(TaskError, match="cloister audit privacy"):
        Canaries()


def test_canaries_need_at_least_one_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records to which canaries could be added"):
        _final(tmp_path / "empty", "", [1])


def test_the_canaries_example_has_the_form_of_their_records(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("1 2 3 4 5 6\n9 8 7 6 5 4\n")
    with set_up(tmp_path / "canaries.json", TASK, Source(tmp_path / "words.txt"), COUNT):
        task = Canaries()
        inputs, targets = task.example()
        assert task.loss(task.model()(inputs), targets).isfinite()


@pytest.mark.parametrize(
    ("task", "text", "count"),
    [
        ("tests.client.named_inputs:Named", "", 40),
        ("tests.client.data.data_sets:Streamed", "a,b,y\n1,2,0\n3,4,1\n", 2),
    ],
    ids=["a dict of tensors", "a data set"],
)
def test_canaries_join_records_of_any_kind(tmp_path: Path, task: str, text: str, count: int) -> None:
    (tmp_path / "records").write_text(text)
    (tmp_path / "in").write_text("0\n3\n")
    with set_up(tmp_path / "canaries.json", task, Source(tmp_path / "records"), COUNT):
        watch = Canaries()
        inputs, targets = watch.load(tmp_path / "in")
        assert inputs[:, -1].tolist() == [0.0] * count + [1.0, 4.0]
        outputs = watch.model()(inputs)
        assert len(outputs) == len(targets) == count + 2
        assert watch.loss(outputs, targets).isfinite()
        assert watch.loss(watch.model()(watch.example()[0]), watch.example()[1]).isfinite()


def test_canaries_join_records_that_a_sites_source_reads(tmp_path: Path) -> None:
    text = "\n".join([HEADER, *ROWS, ""]).replace(",", ";")
    (tmp_path / "patients.csv").write_text(text, encoding="utf-8")
    (tmp_path / "included").write_text("4\n7\n")
    source = Source(tmp_path / "patients.csv", Csv(separator=";", columns={"of another task": "x"}), tmp_path)
    with set_up(tmp_path / "canaries.json", task_name(Ward), source, COUNT):
        loaded: Any = Canaries().load(tmp_path / "included")
    assert loaded[0][:, -1].tolist() == [0, 0, 0, 5, 8]
    assert loaded[1].tolist() == [*TARGETS, 0, 0]
