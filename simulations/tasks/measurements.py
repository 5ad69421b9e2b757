"""The reference survey: how the hospitals' measurements are distributed, asked before training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.data.records import read_csv
from client.work.survey import Survey
from simulations.tasks.diagnosis import RANGES, TARGET

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class Measurements(Survey):
    """The 30 unscaled measurements of `Diagnosis`, and the number of malignant tumours."""

    columns = RANGES
    classes = (0.0, 1.0)

    def load(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read one hospital's patients from a CSV file with the columns `RANGES` and `TARGET`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        return read_csv(path, features=tuple(RANGES), target=TARGET, classes=self.classes)
