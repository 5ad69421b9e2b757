"""Write records to disk in the forms that sites have, and train on them for an epoch while reading is timed.

The timed code is a site's: its sources, its reader and `client.dpsgd.training_steps.train`. Images are colour JPEG
files, which the model gets in 150 × 150 pixels; tables have 30 columns of numbers.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.columns import Category, Flag, Number
from client.data.fitness import load_records
from client.data.site_records import InMemory, Records
from client.data.sources.optional import needing
from client.data.sources.options import Images, Parquet, Sql
from client.data.sources.registry import Source
from client.dpsgd.training_steps import train
from client.settings import Data
from client.task.image_task import ImageTask
from client.task.probe import Example
from client.task.table_task import TableTask
from cloister.benchmarks.training_times import manifest_of, peak_memory
from privacy.at_rest.protection import protect
from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import is_protected
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.managers import ValueProxy
    from pathlib import Path

    from client.data.inputs import Batch
    from client.data.sources.options import ListedOptions, TableOptions
    from client.task.task import Task

_SIDE, _CHANNELS = 150, 3
_CLASSES = ("benign", "malignant")
_COLUMNS = tuple(f"value_{number}" for number in range(30))
_LABEL = "label"
_BATCH = 32  # records in a step, expected
_STEPS = 10  # on made-up records: the sizes of batches vary
TENTHS = 10
_TOLD_EVERY = 0.5  # seconds
_CACHE_MB = 100_000
CACHED = ("cached", "encrypted")
"""Sources whose images are decoded once; in the second, the cache is encrypted as in a protected site's folder."""


class Scans(ImageTask):
    """Images of two classes, for a small convolutional network with GroupNorm."""

    size: ClassVar[tuple[int, ...]] = (_SIDE, _SIDE)
    channels: ClassVar[int] = _CHANNELS
    label = Category(_LABEL, _CLASSES)

    @override
    def model(self) -> nn.Module:
        """Make the untrained network."""
        widths = (_CHANNELS, 16, 32, 64)
        layers = [
            nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU())
            for before, after in pairwise(widths)
        ]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, len(_CLASSES)))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return functional.cross_entropy(outputs, targets)


class Measurements(TableTask):
    """Rows of a table with a flag to predict, for a network of one hidden layer."""

    columns = tuple(Number(name, low=-4, high=4, missing=0) for name in _COLUMNS)
    target = Flag(_LABEL)

    @override
    def model(self) -> nn.Module:
        """Make the untrained network."""
        return nn.Sequential(nn.Linear(self.width, 128), nn.ReLU(), nn.Linear(128, 1))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return functional.binary_cross_entropy_with_logits(outputs, targets)


def write_images(folder: Path, count: int, files: int, side: int = _SIDE) -> Path:
    """Write JPEG files and a table that lists them.

    Args:
        folder: where to write.
        count: the number of records.
        files: the number of different files; the others are links to them.
        side: height and width of an image.

    Returns:
        The table.

    Raises:
        DataError: if Pillow is not installed.
    """
    with needing("pillow", "imaging"):
        from PIL import Image  # noqa: PLC0415 - an extra
    rng, scans = np.random.default_rng(0), folder / "scans"
    scans.mkdir()
    lines = [f"file,{_LABEL}"]
    for number in range(count):
        path = scans / f"{number:06}.jpg"
        if number < files:
            coarse = Image.fromarray(rng.integers(0, 256, (10, 10, _CHANNELS), np.uint8))
            smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
            noisy = smooth + rng.integers(-8, 9, smooth.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        else:
            os.link(scans / f"{number % files:06}.jpg", path)
        lines.append(f"scans/{path.name},{_CLASSES[number % len(_CLASSES)]}")
    table = folder / "scans.csv"
    table.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return table


def write_parquet(folder: Path, count: int) -> Path:
    """Write a Parquet file of `count` rows; return it."""
    path = folder / "rows.parquet"
    parquet.write_table(pa.table(_rows(count)), path)
    return path


def write_sqlite(folder: Path, count: int) -> Path:
    """Write a SQLite database of `count` rows, `rows.db`; return the file with the query."""
    rows = _rows(count)
    with closing(sqlite3.connect(folder / "rows.db")) as database, database:
        database.execute(f"CREATE TABLE rows (number INTEGER PRIMARY KEY, {', '.join(rows)})")
        places = ", ".join("?" * (1 + len(rows)))
        values = zip(range(count), *(column.tolist() for column in rows.values()), strict=True)
        database.executemany(f"INSERT INTO rows VALUES ({places})", values)  # noqa: S608 - places only
    path = folder / "rows.sql"
    path.write_text("SELECT * FROM rows", encoding="utf-8")
    return path


def _rows(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=count).round(4) for name in _COLUMNS} | {_LABEL: rng.integers(0, 2, count)}


class Timed(Records):
    """Records, with the time that reading them takes.

    Attributes:
        seconds: how long it took, or was waited for.
        read: the number of records read.
        peaks: the process's peak memory, in bytes, while each tenth of them was read and trained on.
    """

    def __init__(self, records: Records, told: ValueProxy[int] | None = None) -> None:
        self._records, self._told, self._last = records, told, 0.0
        self.begin()

    def begin(self) -> None:
        """Begin to count."""
        self.seconds, self.read, self.peaks = 0.0, 0, list[int]()
        peak_memory(begin_anew=True)

    @override
    def __len__(self) -> int:
        return len(self._records)

    @property
    @override
    def in_memory(self) -> bool:
        return self._records.in_memory

    @override
    def select(self, chosen: Tensor) -> Batch:
        return self._timed(lambda: self._records.select(chosen))

    @override
    def subset(self, chosen: Tensor) -> Timed:
        return Timed(self._records.subset(chosen))

    @override
    def to(self, device: torch.device) -> Timed:
        return Timed(self._records.to(device))

    @override
    def parts(self, chosen: Tensor, size: int) -> Iterator[Batch]:
        parts = self._records.parts(chosen, size)
        for _ in range(max(1, -(-len(chosen) // size))):
            yield self._timed(lambda: next(parts))

    def _timed(self, read: Callable[[], Batch]) -> Batch:
        start = time.perf_counter()
        batch = read()
        self.seconds += time.perf_counter() - start
        self.read += len(batch[1])
        if self._told and time.perf_counter() - self._last > _TOLD_EVERY:
            self._told.value, self._last = self.read, time.perf_counter()
        if self.read * TENTHS >= (len(self.peaks) + 1) * len(self):
            self.peaks.append(peak_memory())
            peak_memory(begin_anew=True)
        return batch


def measured(source: str, workers: int, path: Path, count: int, told: ValueProxy[int] | None = None) -> dict[str, Any]:
    """Open records and train on them for an epoch. Call it in a fresh process.

    Args:
        source: `memory`, `images`, `parquet` or `sql`; or `cached` or `encrypted`, images that are decoded once, while
            the records are opened, and then read from the cache.
        workers: the number of processes that read images ahead.
        path: what the site's settings would name; unused for `memory`.
        count: the number of records.
        told: is set to the number of records trained on so far, now and then.

    Returns:
        `open_seconds` until training could start, `ms_per_record` in training, `share_of_step` for which it waited for
        records, `worker_mb`, the most memory that one of the other processes had, and of this process's memory, more
        than training on as many made-up records in a step takes, `peak_mb`, the most, and `tenths_mb`, the most in each
        tenth of the epoch.
    """
    task = Measurements() if source in {"parquet", "sql"} else Scans()
    torch.manual_seed(0)
    model = task.model()
    inputs, targets = task.example()
    rows = torch.arange(2 * _BATCH) % len(targets)
    peak_memory(begin_anew=True)
    _train(task, model, InMemory(inputs[rows], targets[rows]), steps=_STEPS)
    before, start = peak_memory(), time.perf_counter()
    peak_memory(begin_anew=True)
    records = Timed(_opened(task, source, workers, path, count), told)
    opened = time.perf_counter() - start
    _train(task, model, records, steps=1)  # starts the other processes
    peak, start = peak_memory(), time.perf_counter()
    records.begin()
    _train(task, model, records, steps=max(1, round(count / _BATCH)))
    took = time.perf_counter() - start
    others = [peak_memory(child.pid) for child in multiprocessing.active_children() if child.pid]
    last = max(peak_memory(), *records.peaks[TENTHS - 1 :], 0)
    peaks = [*records.peaks[: TENTHS - 1], last]
    return {
        "open_seconds": round(opened, 3),
        "ms_per_record": round(1000 * records.seconds / max(1, records.read), 4),
        "share_of_step": round(records.seconds / took, 4),
        "peak_mb": round((max(peak, *peaks) - before) / 1e6, 1),
        "tenths_mb": [round((peak - before) / 1e6, 1) for peak in peaks],
        "worker_mb": round(max(others, default=0) / 1e6, 1),
    }


def _opened(task: Scans | Measurements, source: str, workers: int, path: Path, count: int) -> Records:
    if source == "memory":
        return InMemory(torch.rand(count, _CHANNELS, _SIDE, _SIDE), torch.arange(count) % len(_CLASSES))
    options: dict[str, TableOptions | ListedOptions] = {
        "parquet": Parquet(),
        "sql": Sql(url="sqlite:///rows.db", order_by="number"),
    }
    if source == "encrypted" and not is_protected(path.parent):
        protect(path.parent, Secret.of_passphrase(secrets.token_hex()), ())
    data = Data(path, "benchmark", loader_workers=workers, cache=source in CACHED, cache_mb=_CACHE_MB)
    place = Source(path, options.get(source, Images()), path.parent)
    records: Records = load_records(task, type(task).__name__, Example.of(task), place, data).records
    if data.cache:
        for _ in records.in_order(_BATCH):
            pass
    return records


def _train(task: Task, model: nn.Module, records: Records, steps: int) -> None:
    count = len(records)
    manifest = manifest_of(type(task), count, steps, min(1.0, _BATCH / count))
    train(task, model, records, count, manifest, Randomness.fresh())
