"""What the reference tasks over tables share: files of numbers, and columns scaled by public ranges."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


def write_table(path: Path, columns: Sequence[str], rows: NDArray[Any]) -> None:
    """Write `(n, len(columns))` numbers to a CSV file that `read_csv` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows.tolist())


def to_range(values: Tensor, ranges: Mapping[str, tuple[float, float]]) -> Tensor:
    """Clamp columns `(n, d)` to public ranges, in the order of `ranges`, and map each range to -1 … 1.

    >>> to_range(torch.tensor([[20.0], [50.0], [99.0]]), {"age": (20.0, 80.0)}).flatten().tolist()
    [-1.0, 0.0, 1.0]
    """
    low, high = torch.tensor(list(ranges.values())).T
    scaled: Tensor = 2 * (values.clamp(low, high) - low) / (high - low) - 1
    return scaled
