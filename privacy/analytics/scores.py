"""Encode what a model says of each record, so that metrics that are not means can be read from a noisy sum.

Every metric needs one or more blocks of numbers. A record adds a vector of norm at most 1 to each block:

    confusion     1 at its class and the predicted class
    scores        the bin of its score, as `privacy.analytics.sketch` encodes it, in its class's row
    gaps, bins    in the bin of its confidence: whether the prediction is right minus the confidence, and 1
    times         1 at its time and event
    one number    accuracy, Brier score, absolute and squared error, the target and its square, each scaled to 0 … 1

The classes, thresholds, ranges and numbers of bins are public constants of the task; the blocks' names contain them, so
that sums of different forms cannot be added up.

A bin of a score s holds an equal part of the range of √s/(√s + √(1 − s)): bins are narrow near 0 and 1, where the
scores of rare classes and of good models are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from privacy.analytics import sketch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

Family = Literal["classes", "values", "times"]

FAMILIES: dict[str, Family] = {
    "accuracy": "classes",
    "balanced_accuracy": "classes",
    "auc": "classes",
    "average_precision": "classes",
    "f1": "classes",
    "precision": "classes",
    "recall": "classes",
    "confusion": "classes",
    "ece": "classes",
    "brier": "classes",
    "mae": "values",
    "rmse": "values",
    "r2": "values",
    "c_index": "times",
}
"""What each metric is about: predicted classes, predicted values, or times until an event."""

CONFIDENCE_BINS = 10  # of the expected calibration error
_CURVES = {"auc", "average_precision"}
_COUNTED = {"f1", "precision", "recall", "balanced_accuracy", "confusion", *_CURVES}


@dataclass(frozen=True)
class Prediction:
    """What a task predicts: public constants, the same at every site."""

    family: Family
    classes: int = 2  # of the label; for times, how many there are; 0 for values
    threshold: float = 0.5  # with two classes: the lowest score that predicts class 1
    bins: int = 64  # of a score
    low: float = 0.0  # values are clamped to this range
    high: float = 1.0

    @property
    def width(self) -> float:
        """The width of the values' range."""
        return self.high - self.low

    @property
    def binary(self) -> bool:
        """Whether there are two classes, so that one score says everything."""
        return self.classes == 2  # noqa: PLR2004

    @property
    def label(self) -> str:
        """What a label is, in words."""
        if self.family == "values":
            return "a number"
        if self.family == "times":
            return f"an interval from 0 to {self.classes - 1} with an event of 0 or 1"
        return f"a class from 0 to {self.classes - 1}"

    def odd_label(self, labels: Numbers) -> int | None:
        """Return the row of the first label that is none, or None: classes or values `(n,)`, or times `(n, 2)`."""
        if self.family == "values":
            right = np.isfinite(labels)
        else:
            numbers = labels if self.family == "classes" else labels[:, 0]
            right = (numbers >= 0) & (numbers < self.classes) & (numbers == np.floor(numbers))
        if self.family == "times":
            right &= np.isin(labels[:, 1], (0.0, 1.0))
        rows = np.flatnonzero(~right)
        return int(rows[0]) if len(rows) else None

    def predicted(self, scores: Numbers) -> NDArray[np.intp]:
        """Return the predicted classes, `(n,)`, from the probabilities of all classes, `(n, c)`."""
        if self.binary:
            return (scores[:, 1] >= self.threshold).astype(np.intp)
        predicted: NDArray[np.intp] = np.argmax(scores, axis=1)
        return predicted

    def confidence(self, scores: Numbers, labels: NDArray[np.intp]) -> tuple[Numbers, Numbers]:
        """Return confidences and what came true, 0 or 1, both `(n,)`.

        With two classes: the probability of class 1, and whether the record is of class 1. With more: the probability
        of the most probable class, and whether it is the record's.
        """
        if self.binary:
            return scores[:, 1], (labels == 1).astype(np.float64)
        return np.max(scores, axis=1), (np.argmax(scores, axis=1) == labels).astype(np.float64)


@dataclass(frozen=True)
class Form:
    """The blocks of some metrics of a prediction.

    >>> [name for name, _ in Form(Prediction("classes"), ("auc", "brier")).shapes]
    ['confusion 2 0.5', 'scores 2 64', 'brier 2']
    """

    prediction: Prediction
    names: tuple[str, ...]

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The blocks' names and shapes."""
        return tuple((f"{block} {form}", shape) for block, form, shape in self._blocks())

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """The blocks' shapes, by the first word of their name."""
        return {block: shape for block, _, shape in self._blocks()}

    def _blocks(self) -> list[tuple[str, str, tuple[int, ...]]]:
        names, it = set(self.names), self.prediction
        count, ends = it.classes, f"{it.low!r} {it.high!r}"
        cut = f"2 {it.threshold!r}" if it.binary else f"{count}"
        curves = 1 if it.family == "classes" and it.binary else count
        blocks: list[tuple[str, str, tuple[int, ...], bool]] = [
            ("confusion", cut, (count, count), bool(names & _COUNTED)),
            ("times", f"{count}", (count, 2), "c_index" in names),
            ("scores", f"{count} {it.bins}", (curves, 2, it.bins - 1), bool(names & (_CURVES | {"c_index"}))),
            ("gaps", f"{count} {CONFIDENCE_BINS}", (CONFIDENCE_BINS,), "ece" in names),
            ("bins", f"{count} {CONFIDENCE_BINS}", (CONFIDENCE_BINS,), "ece" in names),
            ("accuracy", cut, (1,), "accuracy" in names),
            ("brier", f"{count}", (1,), "brier" in names),
            ("absolute", ends, (1,), "mae" in names),
            ("squared", ends, (1,), bool(names & {"rmse", "r2"})),
            ("target", ends, (1,), "r2" in names),
            ("target-squared", ends, (1,), "r2" in names),
        ]
        return [(block, form, shape) for block, form, shape, needed in blocks if needed]

    def total(self, scores: Numbers, labels: Numbers) -> Numbers:
        """Return the sum over all records, `(size,)`; whatever the scores and labels are, see above for its norm.

        Args:
            scores: probabilities `(n, c)`, predicted values `(n,)`, or risks from 0 to 1 `(n,)`. NaN counts as 0, or as
                the low end of the range.
            labels: classes `(n,)`, values `(n,)`, or times and events `(n, 2)`.
        """
        parts = _TOTALS[self.prediction.family](self.prediction, self.blocks, scores, labels)
        return np.concatenate([np.ravel(parts[block]) for block in self.blocks] or [np.zeros(0)])


def bin_of(scores: Numbers, bins: int) -> NDArray[np.intp]:
    """Return the bins of scores from 0 to 1.

    >>> bin_of(np.array([0.0, 0.001, 0.5, 0.999, 1.0]), 64).tolist()
    [0, 1, 32, 62, 63]
    """
    low, high = np.sqrt(scores), np.sqrt(1 - scores)
    indices: NDArray[np.intp] = np.minimum((low / (low + high) * bins).astype(np.intp), bins - 1)
    return indices


def confidence_bin(confidences: Numbers) -> NDArray[np.intp]:
    """Return the bins of confidences; the bins are of equal width, and the last includes 1."""
    indices: NDArray[np.intp] = np.minimum((confidences * CONFIDENCE_BINS).astype(np.intp), CONFIDENCE_BINS - 1)
    return indices


def brier(scores: Numbers, labels: NDArray[np.intp]) -> Numbers:
    """Return each record's squared distance between the probabilities and its class, halved, so from 0 to 1: `(n,)`."""
    truth = np.zeros_like(scores)
    truth[np.arange(len(labels)), labels] = 1
    halves: Numbers = np.sum((scores - truth) ** 2, axis=1) / 2
    return halves


def _rows(which: NDArray[np.intp], scores: Numbers, rows: int, bins: int) -> Numbers:
    """Return the encoded bins of the scores in each row, `(rows, bins - 1)`."""
    positions = bin_of(scores, bins) / (bins - 1)
    return np.stack([sketch.encode(positions[which == row], bins - 1) for row in range(rows)])


def _of_classes(it: Prediction, blocks: dict[str, tuple[int, ...]], scores: Numbers, labels: Numbers
                ) -> dict[str, Numbers]:  # fmt: skip
    scores = np.clip(np.nan_to_num(scores, nan=0.0), 0, 1)
    classes = np.clip(np.nan_to_num(labels), 0, it.classes - 1).astype(np.intp)
    predicted = it.predicted(scores)
    confidences, true = it.confidence(scores, classes)
    bins = confidence_bin(confidences)
    cells = np.bincount(classes * it.classes + predicted, minlength=it.classes**2)
    parts = {
        "confusion": cells.astype(np.float64),
        "gaps": np.bincount(bins, true - confidences, CONFIDENCE_BINS),
        "bins": np.bincount(bins, minlength=CONFIDENCE_BINS).astype(np.float64),
        "accuracy": np.array([np.sum(predicted == classes, dtype=np.float64)]),
        # Probabilities that do not add up to 1 could be further away.
        "brier": np.array([np.sum(np.minimum(brier(scores, classes), 1.0))]),
    }
    if "scores" in blocks and it.binary:
        parts["scores"] = _rows(classes, scores[:, 1], 2, it.bins)
    elif "scores" in blocks:
        # One score for each class: the norm of c encoded bins is √c.
        counts = [
            _rows((classes == label).astype(np.intp), scores[:, label], 2, it.bins) for label in range(it.classes)
        ]
        parts["scores"] = np.concatenate(counts) / math.sqrt(it.classes)
    return parts


def _of_values(it: Prediction, blocks: dict[str, tuple[int, ...]], scores: Numbers, labels: Numbers
               ) -> dict[str, Numbers]:  # fmt: skip
    del blocks
    predicted, true = (
        (np.clip(np.nan_to_num(part, nan=it.low), it.low, it.high) - it.low) / (it.high - it.low)
        for part in (scores, labels)
    )
    return {
        "absolute": np.array([np.sum(np.abs(predicted - true))]),
        "squared": np.array([np.sum((predicted - true) ** 2)]),
        "target": np.array([np.sum(true)]),
        "target-squared": np.array([np.sum(true**2)]),
    }


def _of_times(it: Prediction, blocks: dict[str, tuple[int, ...]], scores: Numbers, labels: Numbers
              ) -> dict[str, Numbers]:  # fmt: skip
    del blocks
    scores = np.clip(np.nan_to_num(scores, nan=0.0), 0, 1)
    times = np.clip(np.nan_to_num(labels[:, 0]), 0, it.classes - 1).astype(np.intp)
    rows = 2 * times + (labels[:, 1] > 0)
    return {
        "times": np.bincount(rows, minlength=2 * it.classes).astype(np.float64),
        "scores": _rows(rows, scores, 2 * it.classes, it.bins),
    }


_TOTALS: dict[Family, Callable[[Prediction, dict[str, tuple[int, ...]], Numbers, Numbers], dict[str, Numbers]]] = {
    "classes": _of_classes,
    "values": _of_values,
    "times": _of_times,
}
