"""Say what is wrong with labels that a task cannot mean: classes, or intervals with events, beyond its model's outputs.

    its label is out of range, and the task's classes are 0 and 1; correct the record, or leave it out
    labels are 1 to 2, but the model has 2 outputs, for 0 to 1; subtract 1 from them in load()

A single record's label is shown in simulations only: more people read logs than records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from client.task.scoring import as_numbers, prediction_of
from privacy.analytics.scores import Prediction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from client.task.task import Task


_ROUNDING = 1e-6  # of a range: targets are float32
_FEW = 0.01  # of all labels: these may be mistakes in records; more are a mistake in `load`, or of the model


@dataclass(frozen=True)
class LabelCheck:
    """What the labels of a task are.

    Attributes:
        prediction: what the task predicts; None if it names no metrics and its targets are no classes.
        outputs: of the model, for each record.
        quoting: whether messages show the label of a single record.
    """

    prediction: Prediction | None
    outputs: int
    quoting: bool = False

    @classmethod
    def inferred(cls, task: Task, outputs: Tensor, targets: Tensor, *, quoting: bool) -> LabelCheck:
        """Infer it from the outputs `(n, ...)` and targets `(n, ...)` of made-up records, on the CPU."""
        count = outputs[0].numel()
        if task.named_metrics:
            return cls(prediction_of(task, outputs, targets), count, quoting)
        if outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point():  # noqa: PLR2004 - logits
            return cls(Prediction("classes", count), count, quoting)
        return cls(None, count, quoting)

    def of(self, task: Task, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
        """Return the labels of a batch, `(n,)` or `(n, 2)`."""
        return as_numbers(task, outputs, targets)[1] if task.named_metrics else targets.double().numpy()

    def first(self, labels: NDArray[np.float64]) -> int | None:
        """Return the row of the first of these labels that is no class or time, or None."""
        if self.prediction is None or self.prediction.family == "values":
            return None
        return self.prediction.odd_label(labels)

    def clamped(self, labels: NDArray[np.float64]) -> list[int]:
        """Return the rows of values beyond the range to which a run's evaluation clamps them."""
        it = self.prediction
        if it is None or it.family != "values":
            return []
        slack = _ROUNDING * (it.high - it.low)
        rows: list[int] = np.flatnonzero((labels < it.low - slack) | (labels > it.high + slack)).tolist()
        return rows

    def sentence(self, batches: Sequence[NDArray[np.float64]]) -> str:
        """Return what is wrong with the first label that is no class or time, and what to do.

        Args:
            batches: the labels that are known, `(n,)` or `(n, 2)` each; at least one is wrong.
        """
        assert self.prediction is not None  # noqa: S101 - else none is wrong
        labels, count = np.concatenate(batches), self.prediction.classes
        has = f"the model has {count} outputs"
        if self.prediction.family == "classes":
            classes = "0 and 1" if count == 2 else f"0 to {count - 1}"  # noqa: PLR2004
            known = f"{has}, for 0 to {count - 1}" if self.outputs == count else f"the task's classes are {classes}"
            more = f"number them 0 to {count - 1} in load(), or give the model {{}} outputs"
            return self._of_numbers("label", labels, count, known, more)
        intervals, events = labels.T
        if not _right(intervals, count).all():
            more = f"put later ones into interval {count - 1} without event in load(), or give the model {{}} outputs"
            return self._of_numbers("interval", intervals, count, f"{has}, for 0 to {count - 1}", more)
        return self._of_numbers("event", events, 2, "an event is 1, or 0 if there was none", "correct them in load()")

    def _of_numbers(self, what: str, values: NDArray[np.float64], count: int, known: str, more: str) -> str:
        """Return what is wrong with numbers `(n,)` that should be whole, from 0 up to, but not including, a count."""
        wrong = ~_right(values, count)
        whole = bool((values == np.floor(values)).all())
        least, most = float(values.min()), float(values.max())
        # Without early events, intervals may well begin later: only the usual mistake is one.
        shifted = whole and 0 < least < most < least + count and (what != "interval" or least == 1)
        if not shifted and (wrong.sum() == 1 or wrong.mean() <= _FEW):
            value = values[wrong][0]
            odd = "out of range" if value == np.floor(value) else "not a whole number"
            problem = f"its {what} is {value:.6g}, but {known}" if self.quoting else f"its {what} is {odd}, and {known}"
            return f"{problem}; correct the record, or leave it out"
        if not whole:
            return f"{what}s are not whole numbers, but {known}; make them whole in load()"
        if shifted:
            mend = f"subtract {least:.0f} from them in load()"
        elif least < 0:
            mend = "number them from 0 in load(), at all sites alike"
        else:
            mend = more.format(f"{most + 1:.0f}")
        found = f"{what}s are {least:.0f} to {most:.0f}" if least < most else f"all {what}s are {least:.0f}"
        return f"{found}, but {known}; {mend}"


def _right(values: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = (values >= 0) & (values < count) & (values == np.floor(values))
    return right
