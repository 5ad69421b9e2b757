"""What the reference tasks over tables share: files of numbers, and columns scaled by public ranges."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from client.data.records import read_csv
from client.task.task import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor


class YesOrNo(Task):
    """A task that predicts a column of 0 and 1 from columns with public ranges."""

    ranges: Mapping[str, tuple[float, float]]
    target: str

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `ranges` and `target`: `(n, d)` in -1 … 1, and `(n, 1)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        columns, answers = read_csv(path, features=tuple(self.ranges), target=self.target, classes=(0.0, 1.0))
        return to_range(torch.from_numpy(columns), self.ranges), torch.from_numpy(answers).unsqueeze(1)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight records, every other one with a yes."""
        return torch.rand(8, len(self.ranges)) * 2 - 1, torch.arange(8.0).remainder(2).unsqueeze(1)


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
