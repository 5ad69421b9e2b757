"""Records for the sites of a planned run: what a task makes up, or somebody's own, as often as a site has records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from client.data.inputs import rows
from client.task.guard import check_task
from simulations.pools import Pool, read_pool

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from client.data.inputs import Inputs
    from client.task.task import Task

_TARGETS, _ONE = "targets", "inputs"


def records_like(task: Task, name: str, path: Path | None) -> Pool:
    """Return the records at a path, or those that the task makes up.

    Raises:
        CloisterError: if the task is refused, or cannot use the records.
    """
    with torch.random.fork_rng(devices=[]):
        example = check_task(task, name)
    return Pool(example.inputs, example.targets) if path is None else read_pool(task, name, example, path)


def write_records(pool: Pool, count: int, path: Path) -> None:
    """Write `count` records, taken from a pool in turn."""
    chosen = torch.arange(count) % len(pool)
    inputs = rows(pool.inputs, chosen)
    parts: dict[str, Tensor] = {_TARGETS: pool.targets[chosen]}
    if isinstance(inputs, torch.Tensor):
        parts[_ONE] = inputs
    elif isinstance(inputs, dict):
        parts |= {f"{_ONE} {key}": part for key, part in inputs.items()}
    else:
        parts |= {f"{_ONE}.{place:06}": part for place, part in enumerate(inputs)}
    save_file({key: part.contiguous() for key, part in parts.items()}, path)


def read_records(path: Path) -> tuple[Inputs, Tensor]:
    """Read what `write_records` has written."""
    parts = load_file(path)
    targets = parts.pop(_TARGETS)
    if _ONE in parts:
        return parts[_ONE], targets
    if next(iter(parts)).startswith(f"{_ONE}."):
        return tuple(parts[key] for key in sorted(parts)), targets
    return {key.partition(" ")[2]: part for key, part in parts.items()}, targets
