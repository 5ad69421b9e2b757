"""What a survey asks of every record, as one vector that a record changes by length 1 at most.

A record of d columns and one label gives

    a count           √√d · 1
    for each column   its value as `privacy.analytics.sketch` writes it: a vector of length 1 at most
    its label         √√d at the place of its class, 0 at the others

Squared and added up, that is at most C² = √d + d + √d. All is divided by C. So the sum of these vectors over a site's
records has sensitivity 1 when a record is added or removed, and with N(0, σ²) on every number of it, it is one step
of the Gaussian mechanism with noise multiplier σ and no sampling: `Mechanism(σ, sample_rate=1, steps=1)`.

Why √√d: count and label are one block each, which costs d columns little to make louder, and every mean is divided by
the count. What is known in public has no part in the noise: ranges, classes, bins.
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
    """What is asked, the same at every site: columns, classes of the label if there is one, bins of each column.

    >>> form = Form((Column("age", 0, 100), Column("pressure", 60, 240)), classes=(0, 1), bins=32)
    >>> form.layout.size, round(form.bound, 2)
    (67, 2.2)
    """

    columns: tuple[Column, ...]  # one at least
    classes: tuple[float, ...]  # may be empty
    bins: int

    @property
    def layout(self) -> Layout:
        """The vector's parts. Their names hold all that is public, so that no two sites add up different surveys."""
        parts = [(f"{each.name} {each.low!r} {each.high!r}", (self.bins,)) for each in self.columns]
        classes = " ".join(map(repr, self.classes))
        return Layout((("count", (1,)), *parts, (f"classes {classes}", (len(self.classes),))))

    @property
    def single(self) -> float:
        """How loud count and label are, before all is divided by C."""
        return math.sqrt(math.sqrt(len(self.columns)))

    @property
    def bound(self) -> float:
        """C: a record's length at most, before all is divided by it."""
        singles = 2 if self.classes else 1
        return math.sqrt(singles * self.single**2 + len(self.columns))

    def total(self, values: Vector, labels: Vector) -> Vector:
        """Sum the records' vectors, `(m,)`.

        Args:
            values: `(n, d)`, finite; clamped to the columns' ranges.
            labels: `(n,)`, each one of the classes; not looked at if there are none.
        """
        parts = [np.array([self.single * len(values)])]
        for column, found in zip(self.columns, values.T, strict=True):
            positions = (found - column.low) / (column.high - column.low)
            parts.append(encode(np.clip(positions, 0.0, 1.0), self.bins))
        found = labels.astype(np.float32)  # as many readers give them
        counts = [np.count_nonzero(found == np.float32(each)) for each in self.classes]
        parts.append(self.single * np.array(counts, np.float64))
        return np.concatenate(parts) / self.bound


def encoding_bound(sigma: float, size: int) -> float:
    """Return a range for a site's noisy vector, divided by the largest size that a site declares.

    No number of a vector is over the site's count of records, nor, but for chances below 10⁻¹⁴, noise over 8σ. A site
    may have twice the records that were declared as the most.
    """
    return 2 + 8 * sigma / size
