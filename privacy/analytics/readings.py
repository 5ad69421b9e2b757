"""Read metrics that are not means from a noisy sum of scores, each with the error that noise and bins make.

A metric's standard error is √Σ ((f(x + s·e) − f(x − s·e))/2)² over the numbers x of the sum, e one of them and s its
noise: how much the noise in each number moves the metric, to first order, measured over one standard deviation on
either side. It covers only the noise, and not how representative the records are.

Noise makes counts negative. The rules: AUC and concordance use the counts as they are, since cutting them would bias
the result; average precision uses cumulative counts made monotone; in other ratios a negative count is 0. The error is
that of what the rule makes of the counts, moved by the noise without the rule, which would hide it. Results are clamped
to their range. A class counts only if its number of records exceeds twice its own error: otherwise nobody knows
whether there is one, and a metric that needs it is undefined. So is R² unless the targets' variance does.

The calibration error is a sum of absolute values, which noise only makes larger: each bin's gap d, with noise s,
contributes √(d² − s²), or 0. Whatever the gaps are, that has a bias of at most 0.35·s and a variance of at most
1.26·s² per bin, from which the stated error follows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.analytics import quality, sketch
from privacy.analytics.scores import CONFIDENCE_BINS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from privacy.analytics.scores import Form, Prediction

    Numbers = NDArray[np.float64]

CERTAIN = 2.0  # how many times its error a class's count must be
_FURTHEST = -1.0, 2.0  # where noise may move a ratio
_GAP_BIAS, _GAP_VARIANCE = 0.35, 1.26  # of √max((d + z)² − 1, 0), for every d, z standard normal
_AT_ONCE = 1 << 21  # numbers to compute with at a time


def read(form: Form, sums: Numbers, noise: float) -> dict[str, dict[str, Any]]:
    """Return each metric's figures: `value`, None where undefined, with `error`, and `bins` where bins matter.

    Args:
        form: the metrics.
        sums: the number of records, then the form's blocks: `(1 + size,)`.
        noise: standard deviation of the noise in each of these numbers.
    """
    reader = _Reader(form, sums, noise)
    return {name: reader.figures(name) for name in form.names}


class _Reader:
    """Reads the metrics of one sum. Blocks may have leading axes `...`: the sum as it was moved by noise."""

    def __init__(self, form: Form, sums: Numbers, noise: float) -> None:
        self._it, self._noise = form.prediction, noise
        sizes = [math.prod(shape) for shape in form.blocks.values()]
        count, *parts = np.split(sums, np.cumsum([1, *sizes])[:-1])
        self._blocks = {
            block: part.reshape(shape) for (block, shape), part in zip(form.blocks.items(), parts, strict=True)
        }
        self._blocks["count"] = np.maximum(count, 1.0)  # if noise hides whether there were any records
        if "confusion" in self._blocks:
            self._blocks["totals"] = np.sum(self._blocks["confusion"], axis=-1)
        self._certain = self._classes_with_records()

    def figures(self, name: str) -> dict[str, Any]:
        """Return a metric's figures."""
        if name == "confusion":
            counts = [[_figure(float(value)) for value in row] for row in self._blocks["confusion"]]
            return {"counts": counts, "error": _figure(self._noise)}
        if name == "ece":
            return self._calibration()
        if name in _CURVES:
            return self._curve(name)
        if name == "c_index":
            return self._concordance()
        if name in _RATIOS:
            return self._of_ratio(name)
        return self._mean(name)

    def _reading(self, name: str, value: float, error: float, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
        if math.isnan(value):
            missing = np.flatnonzero(~self._certain)
            of_class = f"noise hides whether any record has class {missing[0]}" if len(missing) else ""
            return {"value": None, "reason": of_class or _HIDDEN.get(name, "noise hides the counts that it needs")}
        return {"value": _figure(min(max(value, low), high)), "error": _figure(error)}

    def _classes_with_records(self) -> NDArray[np.bool_]:
        """Return for which classes the sum shows that there are records of it, and others: `(classes,)`."""
        if "totals" not in self._blocks:
            return np.ones(self._it.classes, bool)
        own, classes = self._blocks["totals"], self._it.classes
        error = CERTAIN * self._noise * math.sqrt(classes)
        enough: NDArray[np.bool_] = own > max(error, 0.5)
        return enough & (np.sum(own) - own > max(error * math.sqrt(classes - 1), 0.5))

    def _which(self) -> NDArray[np.intp]:
        """Return the classes over which to average: those with records; with two classes, the second."""
        which = np.flatnonzero(self._certain)
        return which[which == 1] if self._it.binary else which

    def _moves(self, block: str) -> Iterator[list[dict[str, Numbers]]]:
        """Move each number of a block up and down by its noise; yield both moved sums, for some numbers at a time."""
        middle = self._blocks[block]
        # A class's total is the sum of one row of the confusion matrix.
        noise = self._noise * (math.sqrt(self._it.classes) if block == "totals" else 1.0)
        for start in range(0, middle.size, step := max(1, _AT_ONCE // middle.size // self._it.bins)):
            count = min(step, middle.size - start)
            shift = np.zeros((count, middle.size))
            shift[np.arange(count), np.arange(start, start + count)] = noise
            shift = shift.reshape(count, *middle.shape)
            yield [self._blocks | {block: middle + side * shift} for side in (1, -1)]

    def _error(self, blocks: tuple[str, ...], compute: Callable[[dict[str, Numbers]], Numbers]) -> float:
        """Return the standard error of what is computed, `(...,)`, from the noise in these blocks."""
        middle, squares = float(compute(self._blocks)), 0.0
        for up, down in (move for block in blocks for move in self._moves(block)):
            ends = [np.where(np.isnan(end), middle, end) for end in (compute(up), compute(down))]
            squares += float(np.sum(((ends[0] - ends[1]) / 2) ** 2))
        return math.sqrt(squares)

    def _mean(self, name: str) -> dict[str, Any]:
        """Read a metric that is made of means."""
        blocks, compute, top = _MEANS[name]

        def computed(parts: dict[str, Numbers]) -> Numbers:
            means = {block: self._positive(block, parts)[..., 0] / parts["count"][..., 0] for block in blocks}
            return compute(self._it, means)

        value = float(computed(self._blocks))
        low = -math.inf if name == "r2" else 0.0
        if name == "r2" and not self._targets_differ():
            value = math.nan
        return self._reading(name, value, self._error(("count", *blocks), computed), low, top(self._it))

    def _targets_differ(self) -> bool:
        """Return whether the sum shows that targets differ, which R² needs."""
        mean, square = (
            float(self._blocks[block][0] / self._blocks["count"][0]) for block in ("target", "target-squared")
        )
        error = self._noise * math.hypot(1.0, 2 * mean) / float(self._blocks["count"][0])
        return square - mean**2 > CERTAIN * error

    def _positive(self, block: str, parts: dict[str, Numbers]) -> Numbers:
        """Return a block without negative counts, moved as far as `parts` are from what was released."""
        released = self._blocks[block]
        moved: Numbers = np.maximum(released, 0.0) + (parts[block] - released)
        return moved

    def _ratio(self, name: str, parts: dict[str, Numbers]) -> Numbers:
        """Return each class's ratio of counts, `(..., classes)`."""
        ratios: Numbers = np.clip(_RATIOS[name](self._positive("confusion", parts)), *_FURTHEST)
        if not self._it.binary:
            ratios = np.nan_to_num(ratios)
        elif name == "balanced_accuracy":
            ratios = np.repeat(np.mean(ratios, axis=-1, keepdims=True), 2, axis=-1)
        return ratios

    def _of_ratio(self, name: str) -> dict[str, Any]:
        """Read a metric of the confusion matrix."""
        if not len(which := self._which()):
            return self._reading(name, math.nan, math.nan)

        def computed(parts: dict[str, Numbers]) -> Numbers:
            mean: Numbers = np.mean(self._ratio(name, parts)[..., which], axis=-1)
            return mean

        return self._reading(name, float(computed(self._blocks)), self._error(("confusion",), computed))

    def _curve(self, name: str) -> dict[str, Any]:
        """Read a metric of the scores of each class and of all others."""
        if not len(which := self._which()):
            return self._reading(name, math.nan, math.nan)
        which = which * (not self._it.binary)  # two classes have one curve
        formula, bound, monotone = _CURVES[name]
        released = self._counts(self._blocks)
        start = _monotone(released) if monotone else released

        def per_class(parts: dict[str, Numbers]) -> Numbers:
            counts = start + (self._counts(parts) - released)
            return formula(counts[..., 0, :], counts[..., 1, :])[..., which]

        squares = 0.0
        for up, down in self._moves("totals"):
            squares += float(np.sum((np.mean(per_class(up) - per_class(down), axis=-1) / 2) ** 2))
        # Scores of one class tell nothing of another's curve, so all classes' are moved at once.
        scores = self._blocks["scores"]
        lanes = self._noise * np.eye(scores[0].size).reshape(-1, 1, *scores.shape[1:])
        high, low = (per_class(self._blocks | {"scores": scores + side * lanes}) for side in (1, -1))
        squares += float(np.sum(((high - low) / 2 / len(which)) ** 2))
        reading = self._reading(name, float(np.mean(per_class(self._blocks))), math.sqrt(squares))
        if reading["value"] is not None:
            counts = _monotone(released)[which]
            reading["bins"] = _figure(min(float(np.mean(bound(counts[:, 0], counts[:, 1]))), 1.0))
        return reading

    def _counts(self, parts: dict[str, Numbers]) -> Numbers:
        """Return counts in each bin, `(..., curves, 2, bins)`: of all other records, then of the curve's class."""
        own, scores = parts["totals"], parts["scores"]
        if self._it.binary:
            return _decoded(scores, own[..., None, :])
        rest = np.sum(own, axis=-1, keepdims=True) - own
        return _decoded(scores * math.sqrt(self._it.classes), np.stack([rest, own], axis=-1))

    def _concordance(self) -> dict[str, Any]:
        times = self._blocks["times"]
        events, all_, error = np.sum(times[:, 1]), np.sum(times), CERTAIN * self._noise * math.sqrt(len(times))
        if events <= max(error, 0.5) or all_ <= max(math.sqrt(2) * error, 1.5):
            return self._reading("c_index", math.nan, math.nan)

        def counts(parts: dict[str, Numbers]) -> Numbers:
            return _decoded(parts["scores"], parts["times"])

        value = float(quality.concordance(counts(self._blocks)))
        error = self._error(("times", "scores"), lambda parts: quality.concordance(counts(parts)))
        reading = self._reading("c_index", value, error)
        if reading["value"] is not None:
            bound = quality.concordance_bound(_monotone(counts(self._blocks)))
            reading["bins"] = _figure(min(float(bound), 1.0))
        return reading

    def _calibration(self) -> dict[str, Any]:
        gaps, counts, noise = self._blocks["gaps"], self._blocks["bins"], self._noise
        whole = float(self._blocks["count"][0])
        value = float(np.sum(np.sqrt(np.maximum(gaps**2 - noise**2, 0.0)))) / whole
        parts = np.clip(gaps / np.maximum(counts, 1.0), -1.0, 1.0)
        together = CONFIDENCE_BINS * _GAP_VARIANCE + (CONFIDENCE_BINS * _GAP_BIAS) ** 2
        return {
            "value": _figure(min(value, 1.0)),
            "error": _figure(noise * math.sqrt(together) * math.hypot(1.0, min(value, 1.0)) / whole),
            "count_error": _figure(noise),
            "table": [
                {
                    "low": number / CONFIDENCE_BINS,
                    "high": (number + 1) / CONFIDENCE_BINS,
                    "count": _figure(float(count)),
                    "gap": _figure(float(part)),
                    "gap_error": _figure(noise * math.hypot(1.0, part) / max(float(count), 1.0)),
                }
                for number, (part, count) in enumerate(zip(parts, counts, strict=True))
            ],
        }


def _decoded(scores: Numbers, totals: Numbers) -> Numbers:
    """Return the counts in each bin, `(..., a, 2, bins)`, of encoded scores and their totals `(..., a, 2)`."""
    below = np.einsum("ij,...j->...i", sketch.reader(scores.shape[-1]), scores) + totals[..., None] / 2
    whole = np.broadcast_to(totals[..., None], (*below.shape[:-1], 1))
    return np.diff(below, axis=-1, prepend=0.0, append=whole)


def _monotone(counts: Numbers) -> Numbers:
    """Return counts of which none is negative and whose cumulative counts are near these: `(..., bins)`."""
    below = np.cumsum(counts, axis=-1)
    whole = np.maximum(below[..., -1:], 0.0)
    top = np.maximum.accumulate(below, axis=-1)
    bottom = np.minimum.accumulate(below[..., ::-1], axis=-1)[..., ::-1]
    between = np.clip((top + bottom) / 2, 0.0, whole)[..., :-1]
    return np.diff(between, axis=-1, prepend=0.0, append=whole)


def _signed_root(squares: Numbers) -> Numbers:
    return np.sign(squares) * np.sqrt(np.abs(squares))


def _brier_top(it: Prediction) -> float:
    """Return the largest Brier score, by convention: 1 with two classes, 2 with more."""
    return 1.0 if it.binary else 2.0


_RATIOS = {
    "f1": quality.f1,
    "precision": quality.precision,
    "recall": quality.recall,
    "balanced_accuracy": quality.recall,
}

_CURVES = {
    "auc": (quality.auc, quality.auc_bound, False),
    "average_precision": (quality.average_precision, quality.average_precision_bound, True),
}
"""A formula, by how much bins can change it, and whether cumulative counts are made monotone."""

Means = dict[str, "Numbers"]
_MEANS: dict[str, tuple[tuple[str, ...], Callable[[Prediction, Means], Numbers], Callable[[Prediction], float]]] = {
    "accuracy": (("accuracy",), lambda _, means: means["accuracy"], lambda _: 1.0),
    "brier": (("brier",), lambda it, means: _brier_top(it) * means["brier"], _brier_top),
    "mae": (("absolute",), lambda it, means: it.width * means["absolute"], lambda it: it.width),
    "rmse": (("squared",), lambda it, means: it.width * _signed_root(means["squared"]), lambda it: it.width),
    "r2": (
        ("squared", "target", "target-squared"),
        lambda _, means: quality.r_squared(means["squared"], means["target"], means["target-squared"]),
        lambda _: 1.0,
    ),
}
"""The blocks whose means a metric is made of, how, and its highest value."""

_HIDDEN = {
    "c_index": "noise hides whether there are comparable pairs",
    "r2": "noise hides whether targets differ",
    "precision": "noise hides whether any record is predicted to have class 1",
}


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
