"""The data of the reference study: three hospitals of different sizes, each with its own patients.

The division of the 569 Wisconsin patients never changes, so that figures can be reproduced. The hospitals differ as
real ones do: north is more than twice the size of east, and east, to which doubtful cases are referred, sees more
malignant tumours (three in ten in the north, more than half in the east).
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np
from sklearn.datasets import load_breast_cancer

from privacy.errors import ConfigError
from simulations.tasks.diagnosis import RANGES, TARGET

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

DECLARED_SIZES = {"north": 280, "south": 170, "east": 120}
"""The number of patients that each hospital declares, rounded to tens: public, and the weight of its updates.

The exact counts are private: with them, an observer could see one patient come or go.
"""

FILE_NAME = "patients.csv"

_SEED = 1995  # the year in which the records were published
_REFERRAL = 0.1  # how far a malignant tumour moves a patient towards the last hospital


def write_hospital_records(folders: Mapping[str, Path]) -> dict[str, int]:
    """Write each hospital's records to `patients.csv` in its folder; create the folder if needed.

    The columns of `Diagnosis` follow a column `patient`, the patient's index in scikit-learn's table: real files have
    columns that a study does not use. Every patient is at exactly one hospital.

    Args:
        folders: the folders to write to, by hospital; some or all of `DECLARED_SIZES`.

    Returns:
        The exact number of patients by hospital. Do not use it in a run; use `DECLARED_SIZES` instead.

    Raises:
        ConfigError: if there is no hospital of that name.
    """
    for name in folders:
        if name not in DECLARED_SIZES:
            msg = f"there is no hospital {name!r}; choose one of {', '.join(DECLARED_SIZES)}"
            raise ConfigError(msg)
    patients = dict(zip(DECLARED_SIZES, _deal(diagnoses()), strict=True))
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_patients(folder / FILE_NAME, patients[name])
    return {name: len(patients[name]) for name in folders}


def diagnoses() -> NDArray[np.int64]:
    """Return whether each patient has a malignant tumour: 1 or 0, `(569,)`."""
    _, benign = load_breast_cancer(return_X_y=True)
    return np.asarray(1 - benign, np.int64)  # scikit-learn encodes benign as 1


def write_patients(path: Path, patients: NDArray[np.intp]) -> None:
    """Write the patients with these indices to a file that `Diagnosis` reads."""
    table, _ = load_breast_cancer(return_X_y=True)
    malignant = diagnoses()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", *RANGES, TARGET])
        writer.writerows([patient, *table[patient].tolist(), malignant[patient]] for patient in patients)


def _deal(malignant: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Divide patients `(n,)` among the hospitals; return ascending indices for each. The last takes the rest."""
    # Raw bits, because NumPy guarantees a stable stream only for these.
    rng = np.random.PCG64(_SEED).random_raw(len(malignant)) / 2**64
    order = np.argsort(rng + _REFERRAL * malignant, kind="stable")
    bounds = np.cumsum(list(DECLARED_SIZES.values()))[:-1]
    return [np.sort(part) for part in np.split(order, bounds)]
