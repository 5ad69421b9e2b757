"""Read a survey's sum: counts, means, deviations, quantiles and labels, with the standard errors due to the noise.

No records are needed here: everything is arithmetic on the released sum. A standard error covers only the noise, which
is known exactly, and not how representative the records are. All figures have six significant digits, so that every
site writes the same file.

A column's figures are computed from F, the fraction of its values below each bin (see `privacy.analytics.sketch`), with
h the bins' width:

    mean = 1 − h·Σ F       mean of squares = 1 − 2h·Σ middle·F − h²/6       for a range from 0 to 1

h²/6 is what splitting a value between two edges adds to its square, on average. The mean uses F as released, so it is
unbiased. Deviation and quantiles use F made monotone: the noise then has less effect than the errors say, but makes the
deviation larger rather than smaller.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.analytics import sketch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from privacy.analytics.statistics import Column, Form

    Vector = NDArray[np.float64]

FRACTIONS = (0.05, 0.25, 0.5, 0.75, 0.95)


def read(form: Form, total: Vector, noise: float) -> dict[str, Any]:
    """Return the figures of a sum over all sites' records.

    Args:
        form: the survey's form.
        total: the sum of the sites' noisy vectors: `(m,)`.
        noise: standard deviation of the noise in every number of `total`.
    """
    parts = np.split(total, np.cumsum([shape[0] for _, shape in form.layout.shapes])[:-1])
    count, error = float(parts[0][0]) * form.bound / form.single, noise * form.bound / form.single
    # If noise hides whether there were any records, a count of one keeps all figures finite; the errors show it.
    reader = _Reader(form.bins, max(count, 1.0), error, noise * form.bound)
    return {
        "count": _figure(count),
        "count_error": _figure(error),
        "columns": {
            column.name: reader.column(column, part * form.bound)
            for column, part in zip(form.columns, parts[1:-1], strict=True)
        },
        "classes": _classes(form.classes, parts[-1] * form.bound / form.single, error),
    }


class _Reader:
    """Reads the columns of one sum."""

    def __init__(self, bins: int, count: float, count_error: float, noise: float) -> None:
        self._bins, self._count, self._count_error, self._noise = bins, count, count_error, noise
        self._rows = sketch.reader(bins)
        self._middles = (np.arange(bins) + 0.5) / bins

    def column(self, column: Column, part: Vector) -> dict[str, Any]:
        """Return a column's figures, in its own unit."""
        below = 0.5 + np.sum(self._rows * part, axis=1) / self._count
        mean, rising = 1 - float(np.sum(below)) / self._bins, sketch.monotone(below)
        centre = 1 - float(np.sum(rising)) / self._bins
        squares = 1 - 2 * float(np.sum(self._middles * rising)) / self._bins - 1 / self._bins**2 / 6
        deviation = math.sqrt(max(squares - centre**2, 0.0))
        off = self._error(2 * (centre - self._middles) / self._bins, rising)  # of the variance
        low, width = column.low, column.high - column.low
        places = low + width * sketch.quantiles(rising, np.array(FRACTIONS))
        ranks = math.hypot(self._noise * sketch.error(self._bins), self._count_error / 2)
        return {
            "low": column.low,
            "high": column.high,
            "mean": _figure(low + width * min(max(mean, 0.0), 1.0)),
            "mean_error": _figure(width * self._error(np.full(self._bins, 1 / self._bins), below)),
            "deviation": _figure(width * deviation),
            # The error of a square root is at most the square root of the error.
            "deviation_error": _figure(width * min(off / 2 / deviation if deviation else math.inf, math.sqrt(off))),
            "quantiles": {f"{fraction:g}": _figure(place) for fraction, place in zip(FRACTIONS, places, strict=True)},
            "rank_error": _figure(ranks / self._count),
            "histogram": [_figure(fraction) for fraction in sketch.histogram(rising)],
        }

    def _error(self, weights: Vector, below: Vector) -> float:
        """Return the standard error of a weighted sum of fractions, from the column's own noise and the count's."""
        own = self._noise * np.sqrt(np.sum(np.square(np.sum(self._rows * weights[:, None], axis=0))))
        shared = self._count_error * np.sum(weights * (below - 0.5))
        return float(np.hypot(own, shared)) / self._count


def _classes(classes: tuple[float, ...], counts: Vector, error: float) -> list[dict[str, float]]:
    """Return how many records have each label, and their fraction of all records."""
    positive = np.maximum(counts, 0.0)
    whole = max(float(np.sum(positive)), 1.0)
    return [
        {
            "label": label,
            "count": _figure(count),
            "count_error": _figure(error),
            "fraction": _figure(fraction),
            "fraction_error": _figure(error * math.hypot(1 - fraction, math.sqrt(len(classes) - 1) * fraction) / whole),
        }
        for label, count, fraction in zip(classes, counts, positive / whole, strict=True)
    ]


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
