"""Metrics that a task names and need not write: what they need to know of the task, and its scores as numbers.

    class Diagnosis(Task):
        metrics = ["auc", "f1"]        # or named_metrics, beside a method metrics()

The task's class says the rest in public constants; its outputs and targets say which kind of prediction it makes:

    classes   outputs are logits: (n,) or (n, 1) for two classes, (n, c) for more; targets are class numbers
    values    outputs and targets are (n,) or (n, 1); `target_range` is needed, `target_values` if targets are scaled
    times     outputs are logits of the hazard in each of t intervals, (n, t); targets are interval and event, (n, 2)

A task with other outputs overrides `scored`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from privacy.analytics.scores import FAMILIES, Prediction
from privacy.config import did_you_mean
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from privacy.analytics.scores import Family

_MEANT = {
    "roc_auc": "auc", "auroc": "auc", "ap": "average_precision", "auprc": "average_precision", "acc": "accuracy",
    "calibration": "ece", "concordance": "c_index", "mse": "rmse", "confusion_matrix": "confusion",
    "sensitivity": "recall", "r_squared": "r2",
}  # fmt: skip
_MOST_BINS = 1024


class NamedMetrics:
    """The part of a task that concerns the metrics that it names."""

    named_metrics: ClassVar[Sequence[str]] = ()
    """Metrics by name, such as "auc", which Cloister computes. A class may also say `metrics = ["auc"]`."""

    threshold: ClassVar[float] = 0.5
    """With two classes: the lowest probability of class 1 that predicts it. For precision, recall, F1, confusion."""

    score_bins: ClassVar[int] = 64
    """The number of bins of the scores that an evaluation sums; more bins need a little more noise."""

    target_range: ClassVar[tuple[float, float] | None] = None
    """For RMSE, MAE and R² over all sites: the public range to which targets and predictions are clamped, in the units
    of `target_values`."""

    target_values: ClassVar[tuple[float, float]] = (0.0, 1.0)
    """What targets of 0 and of 1 stand for, public constants: RMSE and MAE are in their unit. `(150, 230)` for targets
    (y - 150) / 80. A task that declares a `Number` to predict need not say it, nor its `target_range`."""

    @override
    def __init_subclass__(cls, **more: object) -> None:
        """Take `metrics` that are names for `named_metrics`, so that `metrics` is always a method."""
        super().__init_subclass__(**more)
        if "metrics" in vars(cls) and not hasattr(vars(cls)["metrics"], "__get__"):
            cls.named_metrics = vars(cls)["metrics"]
            delattr(cls, "metrics")

    def scored(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores and labels for the metrics that the task names; override it if outputs have another form.

        Returns:
            Probabilities, `(n,)` of class 1 or `(n, c)` of all classes, and classes `(n,)` from 0; or predicted values
            and values, both `(n,)`; or risks from 0 to 1, `(n,)`, and intervals from 0 with events, `(n, 2)`. Each
            record's depend on that record alone.
        """
        scores, labels = default_scores(family_of(self), outputs, targets)
        zero, one = self.target_values
        if family_of(self) == "values" and (zero, one) != (0, 1):
            scores, labels = (zero + (one - zero) * part.double() for part in (scores, labels))
        return scores, labels


def check_names(task: NamedMetrics) -> None:
    """Check the metrics that a task names, and its constants.

    Raises:
        TaskError: if there is no such metric, or a constant is missing or out of range.
    """
    names = task.named_metrics
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        msg = 'its metrics are neither a method nor a list of names; write for example metrics = ["auc", "f1"]'
        raise TaskError(msg)
    for name in names:
        if name not in FAMILIES:
            near = f"did you mean `{_MEANT[name]}`?" if name in _MEANT else did_you_mean(name, FAMILIES)
            msg = f"it names the metric {name!r}, which there is not; {near or 'name one of ' + ', '.join(FAMILIES)}"
            raise TaskError(msg)
    if len(set(names)) < len(names):
        msg = "it names a metric twice; name each once"
        raise TaskError(msg)
    if len(families := {FAMILIES[name]: name for name in names}) > 1:
        one, other, *_ = families.values()
        msg = f"it names {one!r} and {other!r}, which are for different kinds of predictions; name metrics of one kind"
        raise TaskError(msg)
    _check_constants(task, values="values" in families)


def _check_constants(task: NamedMetrics, *, values: bool) -> None:
    if type(task.threshold) not in {int, float} or not 0 < task.threshold < 1:
        msg = f"its threshold is {task.threshold!r}; set a probability between 0 and 1"
        raise TaskError(msg)
    if type(task.score_bins) is not int or not 3 <= task.score_bins <= _MOST_BINS:  # noqa: PLR2004 - two edges and one
        msg = f"its score_bins is {task.score_bins!r}; set a whole number from 3 to {_MOST_BINS}"
        raise TaskError(msg)
    if not values:
        return
    low, high = _two_numbers(task.target_range)
    zero, one = _two_numbers(task.target_values)
    if zero == one or not math.isfinite(one - zero):
        msg = (
            f"its target_values is {task.target_values!r}; set two numbers, what targets of 0 and of 1 stand for, such "
            "as (150, 230) for targets (y - 150) / 80"
        )
        raise TaskError(msg)
    if not (low < high and math.isfinite(high - low)):
        msg = (
            f"it names {task.named_metrics[0]!r}, which needs target_range = (low, high), the public range of its "
            "targets; it must not come from the data"
        )
        raise TaskError(msg)


def _two_numbers(value: Any) -> tuple[float, float]:  # noqa: ANN401 - whatever a class says
    try:
        one, other = (float(end) for end in value or ())
    except (TypeError, ValueError):
        return math.nan, math.nan
    return one, other


def family_of(task: NamedMetrics) -> Family:
    """Return what the metrics that a task names are about; there is at least one."""
    return FAMILIES[task.named_metrics[0]]


def default_scores(family: Family, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores and labels of outputs in the usual form, as the module's beginning says.

    Returns:
        Probabilities, `(n,)` of class 1 or `(n, c)`, with classes `(n,)`; predicted values with values, both `(n,)`; or
        risks from 0 to 1, `(n,)`, with intervals and events `(n, 2)`.

    Raises:
        TaskError: if they have another form.
    """
    rows = len(outputs)
    flat = outputs.reshape(rows, -1) if rows else outputs.reshape(0, outputs.shape[-1] if outputs.dim() > 1 else 1)
    if family == "times":
        if targets.dim() != 2 or targets.shape[1] != 2:  # noqa: PLR2004 - a time and an event
            raise _unusual(outputs, targets)
        # The mean probability, over the intervals, of an event until then.
        return 1 - torch.sigmoid(-flat.double()).cumprod(dim=1).mean(dim=1), targets
    labels = targets.reshape(-1)
    if outputs.dim() > 2 or len(labels) != rows or (family == "values" and flat.shape[1] != 1):  # noqa: PLR2004 - rows
        raise _unusual(outputs, targets)
    if family == "values":
        return flat[:, 0], labels
    return (torch.sigmoid(flat.double())[:, 0] if flat.shape[1] == 1 else flat.double().softmax(dim=1)), labels


def _unusual(outputs: Tensor, targets: Tensor) -> TaskError:
    return TaskError(
        f"its outputs {_form(outputs)} and targets {_form(targets)} do not say what it predicts; for "
        "several labels of a record, write metrics(outputs, targets), with one value per record; or write "
        "scored(outputs, targets), which returns scores and labels"
    )


def _form(part: Tensor) -> str:
    return "(" + ", ".join(("n", *map(str, part.shape[1:]))) + ")"


def prediction_of(task: NamedMetrics, outputs: Tensor, targets: Tensor) -> Prediction:
    """Return what a task predicts, from the outputs and targets of made-up records.

    Raises:
        TaskError: if `scored` returns anything else than scores and labels.
    """
    family = family_of(task)
    scores, labels = as_numbers(task, outputs, targets)
    if family == "values":
        low, high = (float(end) for end in task.target_range or (0.0, 1.0))
        return Prediction("values", classes=0, low=low, high=high)
    if family == "times" and outputs.dim() != 2:  # noqa: PLR2004 - rows and intervals
        raise _unusual(outputs, targets)
    count = (outputs if family == "times" else scores).shape[1]
    prediction = Prediction(family, int(count), float(task.threshold), task.score_bins)
    if np.isfinite(scores).all() and not ((scores >= 0) & (scores <= 1)).all():
        msg = "its scored() returns scores beyond 0 and 1; return probabilities, or for times a risk from 0 to 1"
        raise TaskError(msg)
    if (row := prediction.odd_label(labels)) is not None:
        msg = (
            f"its example has a target that is not {prediction.label} (record {row + 1}); correct example() or scored()"
        )
        raise TaskError(msg)
    return prediction


def as_numbers(task: NamedMetrics, outputs: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a task's scores and labels as `privacy.analytics.scores.Form` takes them.

    Raises:
        TaskError: if `scored` returns anything else.
    """
    result: object = task.scored(outputs, targets)
    if not isinstance(result, tuple) or len(result) != 2 or not all(isinstance(part, Tensor) for part in result):  # noqa: PLR2004
        msg = f"its scored() returns a {type(result).__name__}; return two tensors, scores and labels"
        raise TaskError(msg)
    scores, labels = (part.detach().double().cpu().numpy() for part in result)
    family = family_of(task)
    if family == "classes" and scores.ndim == 2 and scores.shape[1] == 1:  # noqa: PLR2004 - a column
        scores = scores[:, 0]
    if family == "classes" and scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    wanted = {"classes": (2, 1), "values": (1, 1), "times": (1, 2)}[family]
    if (scores.ndim, labels.ndim) != wanted or len(scores) != len(outputs) or len(labels) != len(outputs):
        msg = (
            f"its scored() returns scores of shape {scores.shape} and labels of shape {labels.shape} for "
            f"{len(outputs)} records; return one row per record, as cloister.Task.scored describes"
        )
        raise TaskError(msg)
    return scores, labels
