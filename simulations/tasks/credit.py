"""Score credit applications: will the applicant default within a year?

The 6,000 applications are made up, by `applications` below: incomes and debts are log-normal, and the log-odds of a
default depend on their ratio, on age, on past arrears and on the kind of employment, with an interaction that a linear
score misses. About one in seven defaults. No person stands behind any record.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from simulations.tasks.tables import YesOrNo, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGES = {
    "age": (18.0, 90.0),  # years
    "log_income": (8.0, 13.0),  # natural logarithm of a year's income
    "log_debt": (4.0, 13.0),
    "arrears": (0.0, 6.0),  # payments missed in the last two years
    "years_employed": (0.0, 40.0),
    "self_employed": (0.0, 1.0),
    "homeowner": (0.0, 1.0),
    "enquiries": (0.0, 12.0),  # credit applications in the last year
}
"""Smallest and largest value of every column, chosen without looking at any record."""

TARGET, _SEED, _COUNT = "default", 2024, 6000


class Credit(YesOrNo):
    """Default or not, from eight columns: 321 parameters."""

    ranges, target = RANGES, TARGET

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 8)` to logits `(n, 1)`."""
        return nn.Sequential(nn.Linear(len(RANGES), 32), nn.Tanh(), nn.Linear(32, 1))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 1)`, in nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each prediction is right: 1 or 0, `(n,)`."""
        return {"accuracy": ((outputs > 0) == targets.bool()).float().squeeze(1)}


@cache
def applications() -> NDArray[np.float64]:
    """Make up all applications: the columns of `RANGES` and `TARGET`, `(6000, 9)`; the same every time."""
    rng = np.random.default_rng(_SEED)
    age = rng.uniform(18, 80, _COUNT)
    employed = np.minimum(rng.gamma(1.5, 5, _COUNT), age - 18)
    own = rng.random(_COUNT) < 0.15
    income = rng.normal(10.3 + 0.012 * np.minimum(employed, 20) + 0.1 * own, 0.45)
    debt = rng.normal(income - 0.9, 0.9)
    home = rng.random(_COUNT) < 1 / (1 + np.exp(3 - 0.05 * age - 0.4 * (income - 10.3)))
    arrears = rng.poisson(0.35 + 0.4 * (debt > income), _COUNT)
    enquiries = rng.poisson(1.0 + 0.5 * arrears, _COUNT)
    odds = -2.6 + 0.8 * (debt - income + 0.9) + 0.75 * arrears + 0.12 * enquiries - 0.03 * employed - 0.5 * home
    odds += 1.6 * own * (debt > income - 0.5) + 0.9 * (age < 25)
    default = rng.random(_COUNT) < 1 / (1 + np.exp(-odds))
    table = np.stack([age, income, debt, arrears, employed, own, home, enquiries, default], axis=1)
    return table.astype(np.float64).round(4)


def defaults() -> NDArray[np.int64]:
    """Return whether each applicant defaults: 1 or 0, `(6000,)`."""
    return applications()[:, -1].astype(np.int64)


def write_applications(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the applications with these indices to a file that the task reads."""
    write_table(path, [*RANGES, TARGET], applications()[rows])
