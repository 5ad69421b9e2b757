"""Three hospitals of different sizes, each with patients of its own: the data of the reference study.

The 569 Wisconsin patients are dealt out once and for all, so that a number measured today can be measured again.
The hospitals differ as real ones do: north is more than twice the size of east, and east, where doubtful cases are
referred to, sees more malignant tumours (three in ten in the north, more than half in the east).
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
"""How many patients each hospital says it has, rounded to tens: public, and the weight of its updates.

The exact counts are data: with them, an observer could see one patient come or go.
"""

FILE_NAME = "patients.csv"

_SEED = 1995  # the year in which the records were published
_REFERRAL = 0.1  # how far a malignant tumour moves a patient towards the last hospital


def write_hospital_records(folders: Mapping[str, Path]) -> dict[str, int]:
    """Write each hospital's records to `patients.csv` in its folder, which is made if need be.

    A column `patient`, the patient's place in scikit-learn's table from 0, stands before the columns of `Diagnosis`:
    real files have columns that a study does not use. Every patient is at exactly one hospital.

    Args:
        folders: where to write, by hospital; some or all of `DECLARED_SIZES`.

    Returns:
        The exact number of patients by hospital. Keep it from a run: there, `DECLARED_SIZES` stands for it.

    Raises:
        ConfigError: if there is no hospital of that name.
    """
    for name in folders:
        if name not in DECLARED_SIZES:
            msg = f"there is no hospital {name!r}; choose among {', '.join(DECLARED_SIZES)}"
            raise ConfigError(msg)
    patients = dict(zip(DECLARED_SIZES, _deal(diagnoses()), strict=True))
    for name, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_patients(folder / FILE_NAME, patients[name])
    return {name: len(patients[name]) for name in folders}


def diagnoses() -> NDArray[np.int64]:
    """Return whether each of all patients has a malignant tumour: 1 or 0, `(569,)`."""
    _, benign = load_breast_cancer(return_X_y=True)
    return np.asarray(1 - benign, np.int64)  # scikit-learn counts the other way


def write_patients(path: Path, patients: NDArray[np.intp]) -> None:
    """Write some of the patients, by their place among all, as the file that `Diagnosis` reads."""
    table, _ = load_breast_cancer(return_X_y=True)
    malignant = diagnoses()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", *RANGES, TARGET])
        writer.writerows([patient, *table[patient].tolist(), malignant[patient]] for patient in patients)


def _deal(malignant: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Deal `(n,)` patients out to the hospitals: ascending indices for each, the last taking what is left."""
    # Raw bits, because NumPy promises the same stream for ever only for these.
    rng = np.random.PCG64(_SEED).random_raw(len(malignant)) / 2**64
    order = np.argsort(rng + _REFERRAL * malignant, kind="stable")
    bounds = np.cumsum(list(DECLARED_SIZES.values()))[:-1]
    return [np.sort(part) for part in np.split(order, bounds)]
