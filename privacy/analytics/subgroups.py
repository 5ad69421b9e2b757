"""Metrics for each subgroup of the records, and how far apart the subgroups are.

A subgroup is a public column with few public values, such as sex or a band of ages. Each record has one value. So for
each column the blocks of `privacy.analytics.scores`, and the count, exist once per value, and a record adds to those of
its own value alone: a vector of norm at most 1 to each, as without subgroups. Several columns are several blocks.

With two classes the counts of true and predicted classes give each subgroup's rates at the task's threshold:

    selection_rate        the part of its records that is predicted to be of class 1
    true_positive_rate    of its records of class 1, the part that is predicted to be
    false_positive_rate   of its records of class 0, the part that is predicted to be of class 1

A gap is the largest rate minus the smallest. Noise only makes gaps larger: one that is not several times its error says
nothing. A rate is undefined if the number of records that it is a part of is within twice its own error of 0.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.analytics.exact import exact
from privacy.analytics.readings import CERTAIN, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from privacy.analytics.scores import Form

    Numbers = NDArray[np.float64]
    Places = NDArray[np.intp]
    Figures = dict[str, Any]

MOST_VALUES = 32

RATES = {
    "selection_rate": ((0, 1), "records"),
    "true_positive_rate": ((1,), "records of class 1"),
    "false_positive_rate": ((0,), "records of class 0"),
}
"""Each rate: of which true classes it is the part predicted to be of class 1, and what these are called."""

GAPS = {
    "demographic_parity_difference": "selection_rate",
    "equal_opportunity_difference": "true_positive_rate",
    "false_positive_rate_difference": "false_positive_rate",
}
"""Each gap, and the rate that it is about."""


@dataclass(frozen=True)
class BySubgroup:
    """A column of subgroups with its values, and what is measured in each: public constants.

    >>> from privacy.analytics.scores import Form, Prediction
    >>> BySubgroup("sex", ("female", "male"), Form(Prediction("classes"), ("confusion",))).shapes
    (('count by sex ["female", "male"]', (2,)), ('confusion 2 0.5 by sex ["female", "male"]', (2, 2, 2)))
    """

    name: str
    values: tuple[str, ...]
    form: Form  # with the confusion matrix, if classes are predicted
    asked: tuple[str, ...] = ()  # the metrics of the form that the run asks for

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The blocks' names and shapes: first the counts, then the form's blocks; the first axis is the value."""
        by, count = f"by {self.name} {json.dumps(self.values)}", len(self.values)
        return ((f"count {by}", (count,)), *((f"{name} {by}", (count, *shape)) for name, shape in self.form.shapes))

    @property
    def size(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def parts(self) -> int:
        """How many blocks they are: to each, a record adds a vector of norm at most 1."""
        return len(self.shapes)

    def total(self, places: Places, scores: Numbers, labels: Numbers) -> Numbers:
        """Return the sum over all records, `(size,)`; see above for its norm.

        Args:
            places: of each record's value, `(n,)`; a record whose place is none adds nothing.
            scores: as `Form.total` takes them, `(n, ...)`.
            labels: the same.
        """
        counts = np.array([np.count_nonzero(places == place) for place in range(len(self.values))], np.float64)
        of_values = [self.form.total(scores[places == place], labels[places == place])
                     for place in range(len(self.values))]  # fmt: skip
        cuts = np.cumsum(self._sizes)[:-1]
        blocks = zip(*(np.split(vector, cuts) for vector in of_values), strict=True)
        return np.concatenate([counts, *(part for block in blocks for part in block)])

    def read(self, sums: Numbers, noise: float) -> Figures:
        """Return each value's figures, and the gaps between them, from a noisy sum.

        Args:
            sums: the blocks `(size,)`.
            noise: standard deviation of the noise in each number.
        """
        count = len(self.values)
        cuts = np.cumsum([count, *(count * size for size in self._sizes)])[:-1]
        counts, *blocks = (part.reshape(count, -1) for part in np.split(sums, cuts))
        by_value = {}
        for place, value in enumerate(self.values):
            parts = [block[place] for block in blocks]
            figures: Figures = {"count": _figure(float(counts[place, 0])), "count_error": _figure(noise)}
            known = read(self.form, np.concatenate([counts[place], *parts]), noise)
            figures |= {name: known[name] for name in self.asked}
            if self._has_rates:
                matrix = dict(zip(self.form.blocks, parts, strict=True))["confusion"]
                figures |= rates(matrix.reshape(2, 2), noise)
            by_value[value] = figures
        return self._with_gaps(by_value)

    def exact(self, places: Places, scores: Numbers, labels: Numbers) -> Figures:
        """Return the same figures without errors, from one site's records, for that site's eyes only.

        Raises:
            DataError: if a score is not a finite number, or a label is none.
        """
        by_value: dict[str, Figures] = {}
        for place, value in enumerate(self.values):
            own = places == place
            by_value[value] = {"count": int(np.count_nonzero(own))}
            if not own.any():
                by_value[value] |= {name: {"value": None, "reason": "no held-out records"} for name in self.asked}
            else:
                by_value[value] |= exact(self.form.prediction, self.asked, scores[own], labels[own])
            if self._has_rates:
                counts = exact(self.form.prediction, ("confusion",), scores[own], labels[own])["confusion"]["counts"]
                by_value[value] |= rates(np.array(counts, np.float64), 0.0)
        return self._with_gaps(by_value)

    @property
    def _has_rates(self) -> bool:
        return self.form.prediction.family == "classes" and self.form.prediction.binary

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for _, shape in self.form.shapes]

    def _with_gaps(self, by_value: dict[str, Figures]) -> Figures:
        gaps = {name: gap(by_value, rate) for name, rate in GAPS.items()} if self._has_rates else {}
        return {"values": by_value, "gaps": gaps}


def rates(confusion: Numbers, noise: float) -> dict[str, Figures]:
    """Return a subgroup's rates, with the errors that noise makes, to first order.

    Args:
        confusion: counts by true, then predicted class, `(2, 2)`.
        noise: standard deviation of the noise in each; without noise, there are no errors.
    """
    figures: dict[str, Figures] = {}
    for name, (classes, what) in RATES.items():
        rows = confusion[list(classes)]
        whole, cells = float(np.sum(rows)), len(classes)
        if whole <= max(CERTAIN * noise * math.sqrt(2 * cells), 0.5):
            hidden = f"noise hides whether there are any {what}" if noise else f"no held-out {what}"
            figures[name] = {"value": None, "reason": hidden}
            continue
        positive = np.maximum(rows, 0.0)  # a negative count is 0
        rate = float(np.sum(positive[:, 1]) / np.sum(positive))
        error = noise * math.sqrt(cells * ((1 - rate) ** 2 + rate**2)) / float(np.sum(positive))
        figures[name] = {"value": _figure(rate)} | ({"error": _figure(error)} if noise else {})
    return figures


def gap(values: Mapping[str, Figures], rate: str) -> Figures:
    """Return how far apart the subgroups with a known rate are: the largest rate minus the smallest.

    >>> gap({"a": {"tpr": {"value": 0.9, "error": 0.03}}, "b": {"tpr": {"value": 0.7, "error": 0.04}}}, "tpr")
    {'value': 0.2, 'highest': 'a', 'lowest': 'b', 'error': 0.05}
    """
    known = {name: figures[rate] for name, figures in values.items() if figures[rate]["value"] is not None}
    if len(known) < 2:  # noqa: PLR2004 - two make a gap
        return {"value": None, "reason": f"fewer than two subgroups have a {rate.replace('_', ' ')}"}
    high, low = (choose(known, key=lambda name: known[name]["value"]) for choose in (max, min))
    difference: Figures = {"value": _figure(known[high]["value"] - known[low]["value"]), "highest": high, "lowest": low}
    if "error" in known[high]:
        difference["error"] = _figure(math.hypot(known[high]["error"], known[low]["error"]))
    return difference


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
