"""Encode a survey's records as one vector per site, with L2 sensitivity 1 to a record.

A record with d columns and one label contributes

    a count           √√d · 1
    for each column   its value encoded by `privacy.analytics.sketch`: a vector of norm at most 1
    its label         √√d at the position of its class, 0 elsewhere

The squared norm is at most C² = √d + d + √d, and everything is divided by C. So the sum of these vectors over a site's
records has sensitivity 1 to adding or removing a record. With N(0, σ²) on each of its numbers, it is one step of the
Gaussian mechanism with noise multiplier σ and no sampling: `Mechanism(σ, sample_rate=1, steps=1)`.

Why √√d: count and label are one block each, so a larger scale for them costs the d columns little, and every mean is
divided by the count. Ranges, classes and bins are public and get no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.analytics.sketch import encode
from privacy.codec.update import Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """A measured quantity, and the public range to which its values are clamped."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """A survey's form, the same at every site: columns, classes of the label if there is one, bins per column.

    >>> form = Form((Column("age", 0, 100), Column("pressure", 60, 240)), classes=(0, 1), bins=32)
    >>> form.layout.size, round(form.bound, 2)
    (67, 2.2)
    """

    columns: tuple[Column, ...]  # at least one
    classes: tuple[float, ...]  # may be empty
    bins: int

    @property
    def layout(self) -> Layout:
        """The vector's parts. Their names hold all public settings, so that different surveys cannot be added up."""
        parts = [(f"{column.name} {column.low!r} {column.high!r}", (self.bins,)) for column in self.columns]
        classes = " ".join(map(repr, self.classes))
        return Layout((("count", (1,)), *parts, (f"classes {classes}", (len(self.classes),))))

    @property
    def single(self) -> float:
        """The scale of count and label, before the division by C."""
        return math.sqrt(math.sqrt(len(self.columns)))

    @property
    def bound(self) -> float:
        """C: the largest norm of a record's vector, before the division by C."""
        singles = 2 if self.classes else 1
        return math.sqrt(singles * self.single**2 + len(self.columns))

    def total(self, values: Vector, labels: Vector) -> Vector:
        """Sum the records' vectors, `(m,)`.

        Args:
            values: `(n, d)`, finite; clamped to the columns' ranges.
            labels: `(n,)`, each one of the classes; ignored if there are none.
        """
        parts = [np.array([self.single * len(values)])]
        for column, numbers in zip(self.columns, values.T, strict=True):
            positions = (numbers - column.low) / (column.high - column.low)
            parts.append(encode(np.clip(positions, 0.0, 1.0), self.bins))
        single_labels = labels.astype(np.float32)  # as many readers give them
        counts = [np.count_nonzero(single_labels == np.float32(value)) for value in self.classes]
        parts.append(self.single * np.array(counts, np.float64))
        return np.concatenate(parts) / self.bound


def encoding_bound(sigma: float, size: int) -> float:
    """Return a bound for the values of a site's noisy vector, divided by the largest declared size.

    No value exceeds the site's number of records, and noise exceeds 8σ with probability below 10⁻¹⁴. A site may have up
    to twice the largest declared size.
    """
    return 2 + 8 * sigma / size
