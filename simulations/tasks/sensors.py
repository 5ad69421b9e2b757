"""Predict from a machine's sensors whether it will fail within a day, with a recurrent network.

The 2,400 series are made up, by `series` below: 48 half hours of vibration, temperature, current and pressure. Of the
machines that fail, some have a vibration that grows, some heat up in bursts, some lose pressure in steps; noise, load
and slow drifts are the same for all. One in three fails.

Three choices let a recurrent network learn under DP-SGD, which allows few steps: each two hours are summarised by fixed
formulas, the GRU's first weights are large enough to tell series apart, and the last layer starts at zero, so that the
first steps train it on the states of an untrained GRU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from opacus.layers import DPGRU
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task
from privacy.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STEPS, CHANNELS = 48, 4
_TOGETHER = 4  # half hours that are summarised
WINDOWS, FEATURES = STEPS // _TOGETHER, 3 * CHANNELS
_LARGEST = 4.0  # of a scaled sensor's value; beyond it, it is clipped
_MIDDLE = (0.0, 0.6, 0.7)  # plausible mean, deviation and maximum of a healthy machine's two hours
_WIDTH, _GAIN, _SEED, _COUNT = 32, 2.0, 2027, 2400


class Sensors(Task):
    """Failure or not, by a GRU over twelve times two hours of four sensors: 4,481 parameters."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 12, 12)` to logits `(n, 1)`."""
        return Recurrent()

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a NumPy archive of `series` `(n, 48, 4)` and `fails` `(n,)`, 0 or 1, and summarise the series.

        Raises:
            DataError: if the file cannot be used.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                series, fails = archive["series"].astype(np.float32), archive["fails"].astype(np.float32)
        except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
            msg = f"{path} is not a NumPy archive with series and fails; write it with numpy.savez"
            raise DataError(msg) from error
        if series.shape != (len(fails), STEPS, CHANNELS) or not np.isfinite(series).all():
            msg = (
                f"{path}: series must be finite numbers (n, {STEPS}, {CHANNELS}), one series per machine; correct them"
            )
            raise DataError(msg)
        if not np.isin(fails, (0, 1)).all():
            msg = f"{path}: fails must be 0 or 1 for every machine; correct them"
            raise DataError(msg)
        return summaries(torch.from_numpy(series)), torch.from_numpy(fails).unsqueeze(1)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight series of noise, every other one of a machine that fails."""
        return summaries(torch.randn(8, STEPS, CHANNELS)), torch.arange(8.0).remainder(2).unsqueeze(1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 1)`, in nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each prediction is right: 1 or 0, `(n,)`."""
        return {"accuracy": ((outputs > 0) == targets.bool()).float().squeeze(1)}


def summaries(series: Tensor) -> Tensor:
    """Map series `(n, 48, 4)` to mean, deviation and maximum of each sensor in every two hours, `(n, 12, 12)`.

    >>> summaries(torch.zeros(1, 48, 4))[0, 0, [0, 4, 8]]  # of the first sensor, relative to a healthy machine's
    tensor([ 0.0000, -0.6000, -0.7000])
    """
    windows = series.clamp(-_LARGEST, _LARGEST).unflatten(1, (WINDOWS, _TOGETHER))
    parts = windows.mean(2), windows.std(2), windows.amax(2)
    return torch.cat([part - middle for part, middle in zip(parts, _MIDDLE, strict=True)], dim=2)


class Recurrent(nn.Module):
    """A GRU, and a linear map of the mean of its states and the last one."""

    def __init__(self, features: int = FEATURES, width: int = _WIDTH, outputs: int = 1) -> None:
        super().__init__()
        self.over_time = DPGRU(features, width, batch_first=True)
        self.last = nn.Linear(2 * width, outputs)
        with torch.no_grad():
            for parameter in self.over_time.parameters():
                parameter.mul_(_GAIN)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, math.log(0.5))  # one in three fails

    def forward(self, series: Tensor) -> Tensor:
        """Map `(n, steps, features)` to logits `(n, outputs)`."""
        states, _ = self.over_time(series)
        logits: Tensor = self.last(torch.cat([states.mean(1), states[:, -1]], dim=1))
        return logits


@cache
def series() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Make up all series `(2400, 48, 4)`, and whether each machine fails `(2400,)`; the same every time."""
    rng = np.random.default_rng(_SEED)
    time = np.linspace(0, 1, STEPS)
    fails = rng.random(_COUNT) < 1 / 3
    kind = rng.integers(3, size=_COUNT)
    values = rng.normal(0, 0.6, (_COUNT, STEPS, CHANNELS))
    load = np.sin(2 * np.pi * (2 * time + rng.random((_COUNT, 1))))[:, :, None]
    values += 0.5 * load * rng.uniform(0.5, 1.5, (_COUNT, 1, CHANNELS))
    values += rng.normal(0, 0.4, (_COUNT, 1, CHANNELS)) * time[:, None]  # drifts
    onset = rng.uniform(0.2, 0.8, (_COUNT, 1))
    late = np.maximum(time - onset, 0)
    size = rng.uniform(0.7, 2.0, (_COUNT, 1)) * fails[:, None]
    values[:, :, 0] *= 1 + 3.0 * late * size * (kind == 0)[:, None]
    values[:, :, 1] += 2.0 * (late > 0) * (rng.random((_COUNT, STEPS)) < 0.3) * size * (kind == 1)[:, None]
    values[:, :, 3] -= np.floor(late * 6) * 0.5 * size * (kind == 2)[:, None]
    return values.astype(np.float32), fails.astype(np.int64)


def write_series(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the series with these indices to a file that the task reads."""
    values, fails = series()
    with path.open("wb") as file:
        np.savez(file, series=values[rows], fails=fails[rows])
