"""How fast a site reads its records, and whether its memory suffices for its tasks: `cloister check SITE`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client.data.fitness import example_of
from client.data.inputs import move
from client.dpsgd.additivity import memory_of
from client.dpsgd.training_steps import way_to_train
from client.work.works import is_survey
from privacy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.site import Site
    from client.work.training import Study

_READ = 256  # records
_BYTES_A_PARAMETER = 13  # besides training: `cloister bench round` measures it
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


def reading(site: Site) -> str:
    """Say how fast the records are read that stay where they are, in a task's data set.

    Raises:
        DataError: if a record cannot be read, or the processes that read ahead do not start.
    """
    workers, said = site.settings.data.loader_workers, []
    for name, study in _studies(site):
        records = study.training
        if records.in_memory or not len(records):
            continue
        chosen, start = torch.arange(min(_READ, len(records))), time.perf_counter()
        records.select(chosen)
        rate = len(chosen) / (time.perf_counter() - start)
        said.append(f"{rate:.0f} records a second for {name}, with loader_workers = {workers}")
    return "; ".join(said) or "all records are in memory"


def memory(site: Site) -> str:
    """Measure a step of every task on made-up records, and compare it with the memory that is free.

    Raises:
        ConfigError: if it does not fit.
        TaskError: if memory runs out while it is measured.
    """
    free, said = free_memory(site.device), []
    for name, study in _studies(site):
        module, computing = study.module(0).to(site.device), site.settings.training
        choice = way_to_train(study.task, module, computing)
        rows = max(1, min(choice.physical_batch, len(study.training)))
        inputs, targets = example_of(study.task)
        made_up = move(inputs, site.device), targets.to(site.device)
        step = memory_of(study.task, module, made_up, choice, computing.precision, rows)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        needed = step + _BYTES_A_PARAMETER * parameters
        text = f"{name} needs {needed / 1e6:.0f} MB, with {rows} records at a time"
        if free is not None and needed > free:
            msg = (
                f"{text}, and {free / 1e6:.0f} MB are free; set a smaller physical_batch in [training] of site.toml, "
                "or use a larger machine"
            )
            raise ConfigError(msg)
        said.append(text)
    left = "" if free is None else f"; {free / 1e6:.0f} MB are free"
    return ("; ".join(said) or "no task is trained here") + left


def _studies(site: Site) -> Iterator[tuple[str, Study]]:
    for name in site.settings.policy.tasks:
        if not is_survey(name):
            yield name, site.study(name)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, within a container's limit; None if this system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable: +([0-9]+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        return None
    free = 1024 * int(found[1]) if found else None
    try:
        within = int(_LIMIT.read_text(encoding="ascii")) - int(_USED.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return within if free is None else min(free, within)
