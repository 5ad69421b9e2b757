"""The reference study: predict whether a breast tumour is malignant, from microscope measurements of its cells.

The records are the Wisconsin diagnostic data set (Street, Wolberg and Mangasarian, 1993) of 569 patients, which comes
with scikit-learn. `simulations.tasks.hospitals` divides them among three hospitals, which train this task together.

A site must not scale by the mean and deviation of its own records, because these are data: sent or not, they would
shape the model outside the privacy budget. So every feature is scaled by its published range, in three steps:

1. Clamp to the range, so that no record exceeds the published values.
2. Take logarithms, because sizes and measurement errors are skewed; square roots where the range begins at 0.
3. Map the range to -3 … 3. A few hundred normally distributed values span about six standard deviations, so this nearly
   standardises. It also centres: the common direction of the inputs takes up less of the clipping norm.

The model is logistic regression, with 31 parameters. Under DP-SGD every parameter adds noise, and on these records a
larger model gains nothing even without privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.data.records import read_csv
from client.task.task import Task

if TYPE_CHECKING:
    from pathlib import Path

RANGES = {
    "mean_radius": (6.981, 28.11),
    "mean_texture": (9.71, 39.28),
    "mean_perimeter": (43.79, 188.5),
    "mean_area": (143.5, 2501.0),
    "mean_smoothness": (0.053, 0.163),
    "mean_compactness": (0.019, 0.345),
    "mean_concavity": (0.0, 0.427),
    "mean_concave_points": (0.0, 0.201),
    "mean_symmetry": (0.106, 0.304),
    "mean_fractal_dimension": (0.05, 0.097),
    "radius_error": (0.112, 2.873),
    "texture_error": (0.36, 4.885),
    "perimeter_error": (0.757, 21.98),
    "area_error": (6.802, 542.2),
    "smoothness_error": (0.002, 0.031),
    "compactness_error": (0.002, 0.135),
    "concavity_error": (0.0, 0.396),
    "concave_points_error": (0.0, 0.053),
    "symmetry_error": (0.008, 0.079),
    "fractal_dimension_error": (0.001, 0.03),
    "worst_radius": (7.93, 36.04),
    "worst_texture": (12.02, 49.54),
    "worst_perimeter": (50.41, 251.2),
    "worst_area": (185.2, 4254.0),
    "worst_smoothness": (0.071, 0.223),
    "worst_compactness": (0.027, 1.058),
    "worst_concavity": (0.0, 1.252),
    "worst_concave_points": (0.0, 0.291),
    "worst_symmetry": (0.156, 0.664),
    "worst_fractal_dimension": (0.055, 0.208),
}
"""Smallest and largest value of every feature, as printed in the data set's documentation; treated as public.

In the units of the data set: lengths in pixels, areas in square pixels, the rest dimensionless.
"""

TARGET = "malignant"
"""The column to predict: 1 for a malignant tumour, 0 for a benign one."""

HALF_WIDTH = 3.0
"""The ends of a feature's range are mapped to ± this, roughly in standard deviations."""


class Diagnosis(Task):
    """Malignant or benign, by logistic regression on 30 features of cell nuclei.

    >>> Diagnosis().model()
    Linear(in_features=30, out_features=1, bias=True)
    """

    named_metrics = "auc", "average_precision", "f1", "confusion", "ece", "brier"

    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 30)` to logits `(n, 1)`."""
        return nn.Linear(len(RANGES), 1)

    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read one hospital's patients from a CSV file with the columns `RANGES` and `TARGET`.

        Returns:
            Scaled features `(n, 30)`, and whether malignant, as 0 or 1, `(n, 1)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        features, malignant = read_csv(path, features=tuple(RANGES), target=TARGET, classes=(0.0, 1.0))
        return scale(torch.from_numpy(features)), torch.from_numpy(malignant).unsqueeze(1)

    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight patients within the ranges, every other one malignant: `(8, 30)` and `(8, 1)`."""
        low, high = torch.tensor(list(RANGES.values())).T
        return scale(low + torch.rand(8, len(low)) * (high - low)), torch.arange(8.0).remainder(2).unsqueeze(1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 1)`, in nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each diagnosis is right: 1 or 0, `(n,)`."""
        return {"accuracy": ((outputs > 0) == targets.bool()).float().squeeze(1)}


def scale(features: Tensor) -> Tensor:
    """Map measured features `(n, 30)` to `(n, 30)` within ±`HALF_WIDTH`, independently for each record.

    >>> ends = torch.tensor(list(RANGES.values())).T
    >>> scale(ends)[:, 0].tolist()
    [-3.0, 3.0]
    >>> beyond = 10 * ends[1:]
    >>> scale(beyond).max().item()
    3.0
    """
    low, high = torch.tensor(list(RANGES.values())).T
    bottom, inside, top = (torch.where(low > 0, x.log(), x.sqrt()) for x in (low, features.clamp(low, high), high))
    return (2 * (inside - bottom) / (top - bottom) - 1) * HALF_WIDTH
