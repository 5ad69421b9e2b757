"""Compute metrics that are not means exactly, from all scores of one site. They are for that site's eyes only.

The formulas are those of `privacy.analytics.quality`, with one cell for each distinct score. With more than two classes
a metric is the mean over the classes: for AUC and average precision over those of which this site has records, and for
precision, recall and F1 over those with records or predictions, as scikit-learn computes them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.analytics import quality
from privacy.analytics.scores import CONFIDENCE_BINS, brier, confidence_bin
from privacy.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.analytics.scores import Prediction

    Numbers = NDArray[np.float64]
    Figures = dict[str, Any]


def exact(it: Prediction, names: tuple[str, ...], scores: Numbers, labels: Numbers) -> dict[str, dict[str, Any]]:
    """Return each metric's figures: `value`, which is None where a metric is undefined, with the `reason`.

    Args:
        it: what is predicted.
        names: of metrics of this family.
        scores: probabilities `(n, c)`, predicted values `(n,)`, or risks `(n,)`.
        labels: classes `(n,)`, values `(n,)`, or times and events `(n, 2)`.

    Raises:
        DataError: if a score is not a finite number, or a label is none.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1))[0])
        msg = (
            f"the model's score for held-out record {row + 1} is not finite, so {', '.join(names)} cannot be computed; "
            "check the record's values, and the model"
        )
        raise DataError(msg)
    if (odd := it.odd_label(labels)) is not None:
        msg = (
            f"the label of held-out record {odd + 1} is not {it.label}, so {', '.join(names)} cannot be computed; "
            "correct the record"
        )
        raise DataError(msg)
    if it.family == "classes":
        return _of_classes(it, names, scores, labels.astype(np.intp))
    return {name: _of_values(name, scores, labels) if it.family == "values" else _of_times(scores, labels)
            for name in names}  # fmt: skip


def _of_classes(it: Prediction, names: tuple[str, ...], scores: Numbers, labels: NDArray[np.intp]
                ) -> dict[str, Figures]:  # fmt: skip
    predicted = it.predicted(scores)
    confusion = np.bincount(labels * it.classes + predicted, minlength=it.classes**2).astype(np.float64)
    confusion = confusion.reshape(it.classes, it.classes)
    figures: dict[str, Figures] = {}
    for name in names:
        if name == "confusion":
            figures[name] = {"counts": confusion.astype(int).tolist()}
        elif name == "ece":
            figures[name] = _calibration(it, scores, labels)
        elif name == "accuracy":
            figures[name] = _metric(float(np.mean(predicted == labels)), "")
        elif name == "brier":
            figures[name] = _metric((1 if it.binary else 2) * float(np.mean(brier(scores, labels))), "")
        elif name in _CURVES:
            figures[name] = _of_curves(it, name, scores, labels)
        else:
            figures[name] = _of_confusion(it, name, confusion)
    return figures


_CURVES = {"auc": quality.auc, "average_precision": quality.average_precision}
_RATIOS = {"precision": quality.precision, "recall": quality.recall, "f1": quality.f1}


def _of_curves(it: Prediction, name: str, scores: Numbers, labels: NDArray[np.intp]) -> Figures:
    present = [label for label in range(it.classes) if 0 < np.count_nonzero(labels == label) < len(labels)]
    if not present:
        return _metric(
            math.nan, f"all held-out records have class {labels[0]}" if len(labels) else "no held-out records"
        )
    values = []
    for label in [1] if it.binary else present:
        cells = np.unique(scores[:, label], return_inverse=True)[1].reshape(-1)
        negative, positive = (
            np.bincount(cells[(labels == label) == which], minlength=cells.max() + 1).astype(np.float64)
            for which in (False, True)
        )
        values.append(float(_CURVES[name](negative, positive)))
    return _metric(math.fsum(values) / len(values), "")


def _of_confusion(it: Prediction, name: str, confusion: Numbers) -> Figures:
    if name == "balanced_accuracy":
        return _metric(float(np.mean(quality.recall(confusion)[confusion.sum(axis=1) > 0])), "no held-out records")
    ratios = _RATIOS[name](confusion)
    if it.binary:
        return _metric(float(ratios[1]), f"no record {_LACKS[name]} class 1")
    seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0
    return _metric(float(np.mean(np.nan_to_num(ratios[seen]))), "no held-out records")


_LACKS = {"precision": "is predicted to have", "recall": "has", "f1": "has, or is predicted to have,"}


def _calibration(it: Prediction, scores: Numbers, labels: NDArray[np.intp]) -> Figures:
    confidences, true = it.confidence(scores, labels)
    bins = confidence_bin(confidences)
    counts, sums, trues = (np.bincount(bins, weights, CONFIDENCE_BINS) for weights in (None, confidences, true))
    table = [
        {
            "low": number / CONFIDENCE_BINS,
            "high": (number + 1) / CONFIDENCE_BINS,
            "count": int(counts[number]),
            "confidence": _figure(sums[number] / counts[number]) if counts[number] else None,
            "observed": _figure(trues[number] / counts[number]) if counts[number] else None,
        }
        for number in range(CONFIDENCE_BINS)
    ]
    return _metric(float(np.sum(np.abs(trues - sums)) / len(labels)), "") | {"table": table}


def _of_values(name: str, predicted: Numbers, true: Numbers) -> Figures:
    squares = float(np.mean((predicted - true) ** 2))
    if name == "mae":
        return _metric(float(np.mean(np.abs(predicted - true))), "")
    if name == "rmse":
        return _metric(math.sqrt(squares), "")
    variance = float(np.var(true))
    return _metric(1 - squares / variance if variance > 0 else math.nan, "all held-out records have the same target")


def _of_times(risks: Numbers, labels: Numbers) -> Figures:
    times = np.unique(labels[:, 0], return_inverse=True)[1].reshape(-1)
    cells = np.unique(risks, return_inverse=True)[1].reshape(-1)
    events, width = labels[:, 1] > 0, int(cells.max()) + 1
    waiting = np.zeros(width)  # records at risk after the present time, by cell
    concordant = pairs = 0.0
    for time in range(int(times.max()), -1, -1):
        now = times == time
        waiting += np.bincount(cells[now & ~events], minlength=width)
        below = np.cumsum(waiting) - waiting / 2
        ill = cells[now & events]
        concordant += float(below[ill].sum())
        pairs += len(ill) * float(waiting.sum())
        waiting += np.bincount(ill, minlength=width)
    return _metric(concordant / pairs if pairs else math.nan, "no two held-out records are comparable")


def _metric(value: float, reason: str) -> Figures:
    return {"value": None, "reason": reason} if math.isnan(value) else {"value": _figure(value)}


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
