"""Predict how long patients stay free of a recurrence, also from those who were not followed to the end.

The 686 patients are those of the German Breast Cancer Study Group's second trial (Schumacher et al., 1994); they come
with the package lifelines. Cox's partial likelihood compares every patient with all others at risk, so a record's term
depends on other records, and DP-SGD cannot clip it. The discrete-time model (Gensheimer and Narasimhan, 2019, "A
scalable discrete-time survival model for neural networks") needs no other record: in each of ten half years, the model
gives the logit of the hazard, and a patient adds one Bernoulli term for every half year in which they were at risk.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
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
    "hormone_therapy": (0.0, 1.0),
    "age": (20.0, 90.0),  # years
    "postmenopausal": (0.0, 1.0),
    "tumour_size": (0.0, 80.0),  # mm
    "grade": (1.0, 3.0),
    "log_nodes": (0.0, 4.0),  # ln(1 + positive lymph nodes)
    "log_progesterone": (0.0, 8.0),  # ln(1 + receptor, fmol/mg)
    "log_oestrogen": (0.0, 8.0),
}
"""Plausible range of every column; treated as public."""

DAYS, EVENT = "days", "recurrence"
INTERVALS, INTERVAL_DAYS = 10, 182.625


class Survival(Task):
    """The logit of the hazard in each of ten half years: a linear score, and a baseline per half year."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 8)` to logits of hazards `(n, 10)`."""
        return _Proportional()

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `RANGES`, `DAYS` and `EVENT`: `(n, 8)`, and days and events `(n, 2)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        columns, events = read_csv(path, features=(*RANGES, DAYS), target=EVENT, classes=(0.0, 1.0))
        table = torch.from_numpy(columns)
        return to_range(table[:, :-1], RANGES), torch.stack([table[:, -1], torch.from_numpy(events)], dim=1)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight patients, every other one with a recurrence."""
        days = torch.rand(8) * INTERVALS * INTERVAL_DAYS
        return torch.rand(8, len(RANGES)) * 2 - 1, torch.stack([days, torch.arange(8.0).remainder(2)], dim=1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of `(n, 10)` logits, in nats per patient."""
        days, event = targets[:, :1], targets[:, 1:]
        starts = torch.arange(INTERVALS, device=outputs.device) * INTERVAL_DAYS
        at_risk = (days > starts).float()
        happens = event * ((days > starts) & (days <= starts + INTERVAL_DAYS)).float()
        terms = functional.binary_cross_entropy_with_logits(outputs, happens, reduction="none")
        return (terms * at_risk).sum(1).mean()


class _Proportional(nn.Module):
    """A score per patient and a baseline per interval, which add up to logits: proportional odds."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(len(RANGES), 1, bias=False)
        self.baseline = nn.Linear(1, INTERVALS, bias=False)
        nn.init.zeros_(self.score.weight)
        nn.init.constant_(self.baseline.weight, -2.0)  # about one in eight a half year

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, 8)` to logits `(n, 10)`."""
        out: Tensor = self.score(inputs) + self.baseline(inputs.new_ones(len(inputs), 1))
        return out


@cache
def cohort() -> NDArray[np.float64]:
    """Return all patients: the columns of `RANGES`, `DAYS` and `EVENT`, `(686, 10)`."""
    from lifelines.datasets import load_gbsg2  # noqa: PLC0415 - only those who make the records need the package

    table = load_gbsg2()
    grade = table["tgrade"].map({"I": 1.0, "II": 2.0, "III": 3.0})
    columns = [
        table["horTh"] == "yes", table["age"], table["menostat"] == "Post", table["tsize"], grade,
        np.log1p(table["pnodes"]), np.log1p(table["progrec"]), np.log1p(table["estrec"]), table["time"], table["cens"],
    ]  # fmt: skip
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1).round(4)


def grades() -> NDArray[np.int64]:
    """Return each tumour's grade, 1 to 3, `(686,)`: to make sites that differ."""
    return cohort()[:, list(RANGES).index("grade")].astype(np.int64)


def write_cohort(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the patients with these indices to a file that the task reads."""
    write_table(path, [*RANGES, DAYS, EVENT], cohort()[rows])
