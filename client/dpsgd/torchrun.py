"""Read this process's place among its site's processes from torchrun's environment, without loading torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from privacy.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A process's place among the processes that train together."""

    rank: int = 0  # 0 is the agent
    size: int = 1
    device: int = 0  # the number of its device


def own_place() -> Place:
    """Return this process's place; without torchrun it is alone.

    Raises:
        ConfigError: if its site's processes run on several machines.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    rank, size, here, device = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    )
    if size != here:
        msg = (
            f"torchrun starts {here} of {size} processes on this machine, so sums without noise would pass between "
            "machines; start all of them on one machine, with --standalone"
        )
        raise ConfigError(msg)
    return Place(rank, size, device)
