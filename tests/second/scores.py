"""Second reader: the blocks that metrics add to an evaluation's vector; see `signed.py`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from tests.second.numbers import kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

_COUNTS = {"auc", "average_precision", "f1", "precision", "recall", "balanced_accuracy", "confusion"}
_CURVES = {"auc", "average_precision"}


def layout(
    names: Sequence[str], kind: str, count: int, threshold: float, bins: int, ends: Sequence[float]
) -> list[Any]:
    """Return names and shapes; `kind` is classes, values or times."""
    wanted, cut = set(names), f"2 {threshold!r}" if count == 2 else f"{count}"
    between, curves = f"{ends[0]!r} {ends[1]!r}", 1 if kind == "classes" and count == 2 else count
    table: list[tuple[Any, list[Any]]] = [
        (wanted & _COUNTS, [f"confusion {cut}", [count, count]]),
        ("c_index" in wanted, [f"times {count}", [count, 2]]),
        (wanted & _CURVES or "c_index" in wanted, [f"scores {count} {bins}", [curves, 2, bins - 1]]),
        ("ece" in wanted, [f"gaps {count} 10", [10]]),
        ("ece" in wanted, [f"bins {count} 10", [10]]),
        ("accuracy" in wanted, [f"accuracy {cut}", [1]]),
        ("brier" in wanted, [f"brier {count}", [1]]),
        ("mae" in wanted, [f"absolute {between}", [1]]),
        (wanted & {"rmse", "r2"}, [f"squared {between}", [1]]),
        ("r2" in wanted, [f"target {between}", [1]]),
        ("r2" in wanted, [f"target-squared {between}", [1]]),
    ]
    return [block for needed, block in table if needed]


def record(name: str, shape: Sequence[int], score: Any, label: Any, threshold: float, ends: Sequence[float]  # noqa: ANN401 - of each kind
           ) -> list[float]:  # fmt: skip
    """Return what one record adds to a block: a score is probabilities, a value or a risk; a time has an event."""
    block, values = name.partition(" ")[0], [0.0] * math.prod(shape)
    if block in {"absolute", "squared", "target", "target-squared"}:
        f, t = ((min(max(value, ends[0]), ends[1]) - ends[0]) / (ends[1] - ends[0]) for value in (score, label))
        return [{"absolute": abs(f - t), "squared": (f - t) ** 2, "target": t, "target-squared": t * t}[block]]
    if isinstance(label, tuple):
        row = 2 * label[0] + label[1]
        if block == "times":
            values[row] = 1.0
            return values
        return _placed(values, row, score, shape[-1], 1.0)
    return _of_classes(block, values, score, label, threshold, shape[-1])


def _of_classes(
    block: str, values: list[float], score: list[float], label: int, threshold: float, size: int
) -> list[float]:
    two = len(score) == 2
    predicted = int(score[1] >= threshold) if two else score.index(max(score))
    p, y = (score[1], label == 1) if two else (score[predicted], predicted == label)
    place = min(math.floor(10 * p), 9)
    match block:
        case "confusion":
            values[label * len(score) + predicted] = 1.0
        case "gaps":
            values[place] = y - p
        case "bins":
            values[place] = 1.0
        case "accuracy":
            values[0] = float(predicted == label)
        case "brier":
            values[0] = min(sum((probability - (c == label)) ** 2 for c, probability in enumerate(score)) / 2, 1.0)
        case "scores" if two:
            _placed(values, label, score[1], size, 1.0)
        case "scores":
            for c, probability in enumerate(score):
                _placed(values, 2 * c + (c == label), probability, size, math.sqrt(len(score)))
    return values


def _placed(values: list[float], row: int, score: float, size: int, divisor: float) -> list[float]:
    """Add the column of a score's bin to a row of `size` numbers."""
    bins = size + 1
    low, high = math.sqrt(score), math.sqrt(1 - score)
    place = min(math.floor(bins * low / (low + high)), bins - 1)
    for number, weight in enumerate(kernel(size)):
        values[row * size + number] += weight[place] / divisor
    return values


def by_subgroup(
    column: str, values: Sequence[str], names: Sequence[str], kind: str, count: int, threshold: float, bins: int,
    ends: Sequence[float],
) -> list[Any]:  # fmt: skip
    """Return names and shapes of a column of subgroups: the counts, then the metrics' blocks, once per value."""
    by = f"by {column} {json.dumps(list(values))}"
    asked = [*names, "confusion"] if kind == "classes" else names
    blocks = layout(asked, kind, count, threshold, bins, ends)
    return [[f"count {by}", [len(values)]], *([f"{name} {by}", [len(values), *shape]] for name, shape in blocks)]


def record_by_subgroup(
    named: Sequence[Any], place: int, score: Any, label: Any, threshold: float, ends: Sequence[float]  # noqa: ANN401 - of each kind
) -> list[float]:  # fmt: skip
    """Return what one record with this value adds to the blocks of a column of subgroups."""
    numbers = list[float]()
    for name, (values, *shape) in named:
        own = record(name, shape, score, label, threshold, ends) if shape else [1.0]
        for value in range(values):
            numbers += own if value == place else [0.0] * len(own)
    return numbers
