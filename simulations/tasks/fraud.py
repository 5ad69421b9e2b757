"""Find fraudulent card payments: one in sixty, so that accuracy says nothing and the order of the scores counts.

The 12,000 payments are made up, by `payments` below, from twelve public quantities of a payment. Frauds are of two
kinds, large purchases abroad at night and runs of small tests of a stolen card, which a linear score cannot both find.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from simulations.tasks.tables import YesOrNo, write_table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RANGES = {
    "log_amount": (0.0, 10.0),  # natural logarithm
    "hour": (0.0, 24.0),
    "abroad": (0.0, 1.0),
    "online": (0.0, 1.0),
    "payments_last_hour": (0.0, 10.0),
    "log_distance": (0.0, 10.0),  # from the last payment, in km
    "card_age": (0.0, 10.0),  # years
    "usual_amount": (0.0, 10.0),  # logarithm of the card's mean amount
}
"""Smallest and largest value of every column, chosen without looking at any record."""

TARGET, _SEED, _COUNT = "fraud", 2025, 12_000
_RATE = 1 / 60


class Fraud(YesOrNo):
    """Fraud or not, from eight columns: 321 parameters."""

    ranges, target = RANGES, TARGET

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 8)` to logits `(n, 1)`, which begin at the public rate of frauds."""
        last = nn.Linear(32, 1)
        nn.init.constant_(last.bias, float(np.log(_RATE / (1 - _RATE))))
        return nn.Sequential(nn.Linear(len(RANGES), 32), nn.Tanh(), last)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats, of logits `(n, 1)`; a fraud counts ten times."""
        return functional.binary_cross_entropy_with_logits(outputs, targets, pos_weight=torch.tensor(10.0))


@cache
def payments() -> NDArray[np.float64]:
    """Make up all payments: the columns of `RANGES` and `TARGET`, `(12000, 9)`; the same every time."""
    rng = np.random.default_rng(_SEED)
    fraud = rng.random(_COUNT) < _RATE
    testing = fraud & (rng.random(_COUNT) < 0.4)
    buying = fraud & ~testing
    usual = rng.normal(3.5, 0.7, _COUNT)
    amount = usual + rng.normal(0, 0.8, _COUNT) + 1.5 * buying - 2.0 * testing
    hour = np.where(buying & (rng.random(_COUNT) < 0.6), rng.uniform(0, 6, _COUNT), rng.normal(14, 4.5, _COUNT) % 24)
    abroad = rng.random(_COUNT) < np.where(buying, 0.6, 0.08)
    online = rng.random(_COUNT) < np.where(testing, 0.95, 0.35)
    last_hour = rng.poisson(np.where(testing, 2.5, 0.3))
    distance = rng.normal(np.where(abroad, 6.5, 1.5) + buying, 1.2)
    age = rng.uniform(0, 10, _COUNT)
    table = np.stack([amount, hour, abroad, online, last_hour, distance, age, usual, fraud], axis=1)
    return np.maximum(table.astype(np.float64), 0).round(4)


def frauds() -> NDArray[np.int64]:
    """Return whether each payment is a fraud: 1 or 0, `(12000,)`."""
    return payments()[:, -1].astype(np.int64)


def write_payments(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the payments with these indices to a file that the task reads."""
    write_table(path, [*RANGES, TARGET], payments()[rows])
