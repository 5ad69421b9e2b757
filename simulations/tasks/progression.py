"""Predict a number: how far diabetes has progressed a year after these ten measurements.

The 442 patients are those of Efron, Hastie, Johnstone and Tibshirani (2004, "Least Angle Regression"); they come with
scikit-learn. Measurements and target are scaled by public ranges.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.records import read_csv
from client.task.task import Task
from simulations.tasks.tables import to_range, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGES = {
    "age": (18.0, 80.0),  # years
    "sex": (1.0, 2.0),
    "body_mass_index": (15.0, 45.0),  # kg/m²
    "blood_pressure": (60.0, 135.0),  # mean, mmHg
    "total_cholesterol": (90.0, 310.0),  # mg/dl, as the rest
    "ldl": (40.0, 250.0),
    "hdl": (20.0, 100.0),
    "cholesterol_ratio": (2.0, 10.0),
    "log_triglycerides": (3.0, 6.5),
    "glucose": (55.0, 130.0),
}
"""Plausible range of every measurement; treated as public."""

TARGET, _PROGRESSION = "progression", {"progression": (25.0, 346.0)}  # as published


class Progression(Task):
    """The progression of the disease, by linear regression on ten measurements."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 10)` to `(n, 1)`. All zero: the middle of the range for everyone."""
        layer = nn.Linear(len(RANGES), 1)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `RANGES` and `TARGET`: `(n, 10)` and `(n, 1)`, all in -1 … 1.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        columns, progression = read_csv(path, features=tuple(RANGES), target=TARGET)
        targets = to_range(torch.from_numpy(progression).unsqueeze(1), _PROGRESSION)
        return to_range(torch.from_numpy(columns), RANGES), targets

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight patients within the ranges."""
        return torch.rand(8, len(RANGES)) * 2 - 1, torch.rand(8, 1) * 2 - 1

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error, in units of half the target's range."""
        return functional.mse_loss(outputs, targets)


@cache
def patients() -> NDArray[np.float64]:
    """Return all patients: the columns of `RANGES` and `TARGET`, `(442, 11)`."""
    columns, progression = load_diabetes(return_X_y=True, scaled=False)
    return np.column_stack([columns, progression]).astype(np.float64)


def thirds() -> NDArray[np.int64]:
    """Return in which third of all progressions each patient's lies, `(442,)`: to make sites that differ."""
    progression = patients()[:, -1]
    return np.digitize(progression, np.quantile(progression, [1 / 3, 2 / 3])).astype(np.int64)


def write_patients(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the patients with these indices to a file that the task reads."""
    write_table(path, [*RANGES, TARGET], patients()[rows])
