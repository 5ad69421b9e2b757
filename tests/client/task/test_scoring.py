"""A task names metrics; what it names, its constants and its outputs are checked before it sees a record."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.data.columns import AnyColumn, Number
from client.task.guard import check_task
from client.task.scoring import as_numbers, prediction_of
from client.task.table_task import TableTask
from client.task.task import Task, import_task
from privacy.analytics.exact import exact
from privacy.analytics.scores import Prediction
from privacy.errors import TaskError
from tests.federations import task_name
from tests.studies import Tiny

if TYPE_CHECKING:
    from collections.abc import Sequence


class Binary(Tiny):
    """Two classes, one logit."""

    named_metrics: ClassVar[Sequence[str]] = ("auc",)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(8.0).reshape(4, 2), (torch.arange(4.0) % 2).unsqueeze(1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)


class Listed(Binary):
    """Lists its metrics where others have a method."""

    metrics = ["accuracy", "f1"]  # type: ignore[assignment]  # noqa: RUF012


class Beside(Binary):
    """Has both."""

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"near": (outputs - targets).abs().squeeze(1)}


class Many(Binary):
    """Three classes."""

    named_metrics = "f1", "auc"

    @override
    def model(self) -> nn.Module:
        return nn.Linear(2, 3)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(8.0).reshape(4, 2), torch.arange(4) % 3

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)


class Survival(Binary):
    """Four intervals."""

    named_metrics = ("c_index",)

    @override
    def model(self) -> nn.Module:
        return nn.Linear(2, 4)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.arange(8.0).reshape(4, 2), torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        hazard, (times, events) = torch.sigmoid(outputs), targets.T
        now = torch.arange(4) == times[:, None]
        before = torch.arange(4) < times[:, None]
        terms = torch.where(before, (1 - hazard).log(), 0.0) + torch.where(
            now, torch.where(events[:, None] > 0, hazard, 1 - hazard).log(), 0.0
        )
        return -terms.sum(dim=1).mean()


class Wanting(Binary):
    """Names what its tests say."""

    named_metrics: ClassVar[Sequence[str]] = ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["auk"], "it names the metric 'auk', which there is not; did you mean `auc`?"),
        (["roc_auc"], "did you mean `auc`?"),
        (["calibration"], "did you mean `ece`?"),
        (["avarage_precision"], "did you mean `average_precision`?"),
        (["zzz"], "name one of accuracy, balanced_accuracy, auc"),
        (["auc", "auc"], "it names a metric twice"),
        (["auc", "rmse"], "it names 'auc' and 'rmse', which are for different kinds of predictions"),
        (["rmse"], "needs target_range = (low, high)"),
        ("auc", 'write for example metrics = ["auc", "f1"]'),
        ([1], "neither a method nor a list of names"),
    ],
    ids=str,
)
def test_malformed_metric_names_are_refused_when_the_task_is_imported(
    monkeypatch: pytest.MonkeyPatch, names: object, message: str
) -> None:
    monkeypatch.setattr(Wanting, "named_metrics", names)
    with pytest.raises(TaskError) as caught:
        import_task(task_name(Wanting))
    assert message in str(caught.value)
    assert str(caught.value).startswith(task_name(Wanting))


class Scaled(Tiny):
    """Predicts (y - 150) / 80."""

    named_metrics: ClassVar[Sequence[str]] = ("rmse",)
    target_values = (150.0, 230.0)
    target_range = (0, 400)


class Glucose(TableTask):
    """Declares what it predicts."""

    columns: ClassVar[Sequence[AnyColumn]] = [Number("age", low=18, high=100)]
    target: ClassVar[AnyColumn | Sequence[AnyColumn]] = Number("glucose", low=2, high=20)
    named_metrics: ClassVar[Sequence[str]] = ("rmse", "mae", "r2")

    @override
    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets)


class InMilligrams(Glucose):
    """Reports in another unit, in a range of its own."""

    target: ClassVar[AnyColumn | Sequence[AnyColumn]] = Number("glucose", low=2, high=20)
    target_values = (200.0, 360.0)
    target_range = (40, 350)


@pytest.mark.parametrize(
    ("task", "values", "low", "high"),
    [
        (Scaled(), [150.0, 190.0], 0, 400),
        (Glucose(), [11.0, 15.5], 2, 20),
        (InMilligrams(), [200.0, 280.0], 40, 350),
    ],
)
def test_errors_are_in_the_units_of_the_target(task: Task, values: list[float], low: float, high: float) -> None:
    outputs, targets = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.0], [0.5]])
    scores, labels = as_numbers(task, outputs, targets)
    assert labels.tolist() == values
    assert scores.tolist() == [values[1]] * 2
    prediction = prediction_of(task, outputs, targets)
    assert (prediction.low, prediction.high) == (low, high)
    figures = exact(prediction, ("rmse",), scores, labels)
    assert figures["rmse"]["value"] == pytest.approx((values[1] - values[0]) / 2**0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("constant", "value", "message"),
    [
        ("threshold", 0, "its threshold is 0; set a probability between 0 and 1"),
        ("threshold", True, "its threshold is True"),
        ("threshold", float("nan"), "its threshold is nan"),
        ("score_bins", 2, "its score_bins is 2; set a whole number from 3 to 1024"),
        ("score_bins", 10.0, "its score_bins is 10.0"),
        ("target_range", (1.0, 1.0), "needs target_range"),
        ("target_range", (0.0, float("inf")), "needs target_range"),
        ("target_range", "wide", "needs target_range"),
        ("target_values", (1.0, 1.0), "its target_values is (1.0, 1.0); set two numbers, what targets of 0 and of 1"),
        ("target_values", None, "its target_values is None"),
    ],
)
def test_a_constant_that_is_out_of_range_is_refused(
    monkeypatch: pytest.MonkeyPatch, constant: str, value: object, message: str
) -> None:
    names = ["rmse"] if constant.startswith("target") else ["auc"]
    monkeypatch.setattr(Wanting, "named_metrics", names)
    monkeypatch.setattr(Wanting, constant, value)
    with pytest.raises(TaskError) as caught:
        import_task(task_name(Wanting))
    assert message in str(caught.value)


def test_a_list_of_names_leaves_the_method_alone() -> None:
    listed: Task = Listed()
    beside, outputs = Beside(), torch.zeros(3, 1)
    assert (tuple(listed.named_metrics), listed.metrics(outputs, outputs)) == (("accuracy", "f1"), {})
    assert beside.named_metrics == ("auc",)
    assert set(beside.metrics(outputs, outputs)) == {"near"}
    assert tuple(import_task(task_name(Listed)).named_metrics) == ("accuracy", "f1")
    assert not Tiny.named_metrics


@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        (Binary, Prediction("classes", 2)),
        (Many, Prediction("classes", 3)),
        (Survival, Prediction("times", 4)),
    ],
)
def test_the_prediction_is_inferred_from_outputs_and_targets(task: type[Task], wanted: Prediction) -> None:
    instance = task()
    inputs, targets = instance.example()
    assert prediction_of(instance, instance.model()(inputs), targets) == wanted


def test_scores_are_probabilities() -> None:
    one, two = torch.tensor([[-1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    scores, labels = as_numbers(Binary(), one, two)
    assert scores[:, 1] == pytest.approx(torch.sigmoid(one[:, 0]).numpy())
    assert (scores.sum(axis=1).tolist(), labels.tolist()) == ([1.0, 1.0], [0.0, 1.0])
    scores, labels = as_numbers(Many(), torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([2]))
    assert scores == pytest.approx(torch.tensor([[0.0, 1.0, 2.0]]).softmax(dim=1).numpy())
    risks, _ = as_numbers(Survival(), torch.tensor([[-9.0] * 4, [0.0] * 4, [9.0] * 4]), torch.zeros(3, 2))
    assert (np.diff(risks) > 0).all()
    assert ((risks > 0) & (risks < 1)).all()


class Own(Binary):
    """Says itself what its scores are."""

    answer: ClassVar[object] = None

    @override
    def scored(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        answer = type(self).answer
        return answer(outputs, targets) if callable(answer) else answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (None, "its scored() returns a NoneType; return two tensors"),
        (lambda outputs, targets: (outputs * 100 + 50, targets[:, 0]), "scores beyond 0 and 1"),
        (lambda outputs, targets: (outputs.sigmoid(), targets[:2, 0]), "return one row per record"),
        (lambda outputs, targets: (outputs.sigmoid(), targets[:, 0] + 1), "a target that is not a class from 0 to 1"),
        (lambda outputs, targets: (outputs.sigmoid(), targets[:, 0] / 2), "a target that is not a class from 0 to 1"),
        (lambda outputs, targets: (outputs["no"], targets), "its scored() fails on"),
    ],
    ids=["nothing", "logits", "short", "too large", "half", "raises"],
)
def test_malformed_scores_are_refused_before_a_record_is_read(
    monkeypatch: pytest.MonkeyPatch, result: object, reason: str
) -> None:
    monkeypatch.setattr(Own, "answer", staticmethod(result) if callable(result) else result)
    with pytest.raises(TaskError) as caught:
        check_task(Own(), task_name(Own))
    assert reason in str(caught.value)


def test_outputs_of_another_form_need_a_method() -> None:
    outputs, targets = torch.zeros(4, 2, 3), torch.zeros(4)
    with pytest.raises(TaskError, match=r"outputs \(n, 2, 3\) and targets \(n\) do not say what it predicts"):
        prediction_of(Binary(), outputs, targets)
    with pytest.raises(
        TaskError, match=r"do not say what it predicts; for several labels of a record, write metrics\(outputs"
    ):
        prediction_of(Survival(), torch.zeros(4, 4), targets)
