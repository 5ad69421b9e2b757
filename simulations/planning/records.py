"""Records for the sites of a planned run: what a task makes up, or somebody's own, as often as a site has records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from client.task.guard import check_task
from simulations.pools import Pool, read_pool

if TYPE_CHECKING:
    from pathlib import Path

    from client.task.task import Task


def records_like(task: Task, name: str, path: Path | None) -> Pool:
    """Return the records at a path, or those that the task makes up.

    Raises:
        CloisterError: if the task is refused, or cannot use the records.
    """
    with torch.random.fork_rng(devices=[]):
        example = check_task(task, name)
    return Pool(example.inputs, example.targets) if path is None else read_pool(task, name, example, path)


def repeated(pool: Pool, count: int) -> Pool:
    """Return so many records, taken from a pool in turn."""
    return pool.subset(np.arange(count) % len(pool))
