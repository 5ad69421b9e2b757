"""Classify handwritten digits of 8 by 8 pixels by softmax regression: small, public, and leaks are easy to see.

The 1,797 digits are scikit-learn's (Alpaydin and Kaynak, 1998). Pixels range from 0 to 16, which is public, so scaling
uses no private data.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.records import read_csv
from client.task.task import Task

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXELS, CLASSES = 64, 10
LARGEST = 16.0  # value of a pixel
_COLUMNS = tuple(f"pixel_{place}" for place in range(PIXELS))


class Digits(Task):
    """Which digit, from 64 pixels: 650 parameters.

    >>> Digits().model()
    Linear(in_features=64, out_features=10, bias=True)
    """

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 64)` to logits `(n, 10)`. All zero: there is no symmetry to break."""
        layer = nn.Linear(PIXELS, CLASSES)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `pixel_0` to `pixel_63` and `digit`: pixels `(n, 64)`, digits `(n,)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        pixels, digits = read_csv(path, features=_COLUMNS, target="digit", classes=range(CLASSES))
        return torch.from_numpy(pixels).clamp(0, LARGEST) / LARGEST, torch.from_numpy(digits).long()

    def example(self) -> tuple[Tensor, Tensor]:
        """Return four made-up records."""
        return torch.linspace(0, 1, 4 * PIXELS).reshape(4, PIXELS), torch.arange(4)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 10)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each digit is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return all digits: pixels from 0 to 16 `(1797, 64)`, and labels `(1797,)`."""
    pixels, targets = load_digits(return_X_y=True)
    return np.asarray(pixels, np.float64), np.asarray(targets, np.int64)


def write_digits(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the digits with these indices to a file that the task reads."""
    pixels, targets = digits()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*_COLUMNS, "digit"])
        writer.writerows([*pixels[row].tolist(), int(targets[row])] for row in rows)
