"""How much memory the gradients of a batch take, and what happens when it runs out.

`peak` measures the memory that torch allocates. If memory runs out in a part of a batch, the step starts again with
parts of half the size (`CipherOptimizer.take_what_fits`): its records and its noise stay as they were drawn, and
nothing is charged again.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from client.task.user_code import is_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class NoMemoryLeft(MemoryError):  # noqa: N818 - it is caught, never shown
    """Memory ran out while gradients were computed."""


@contextmanager
def running_out() -> Iterator[None]:
    """Turn every error that means that memory ran out into one class.

    Raises:
        NoMemoryLeft: in its place.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise NoMemoryLeft(str(error)) from error


def peak(device: torch.device, run: Callable[[], object]) -> int:
    """Return the most memory, in bytes, that torch allocated on a device at any time in a call, on top of before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what is freed while it is measured would count
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to standard error that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    profiler: Any = profiled.profiler  # None before the context
    events: list[Any] = profiler.kineto_results.events()
    now = most = 0
    for event in sorted(
        (allocation for allocation in events if allocation.name() == "[memory]"),
        key=lambda allocation: allocation.start_ns(),
    ):
        now += event.nbytes()
        most = max(most, now)
    return most


def rows_within(limit: int, few: tuple[int, int], many: tuple[int, int], most: int) -> int:
    """Return how many rows fit into `limit` bytes, from 1 to `most`.

    Args:
        limit: in bytes.
        few: a number of rows, and the bytes that they take.
        many: a larger number, and its bytes.
        most: the largest number to return.

    >>> rows_within(1000, (2, 300), (6, 500), 256), rows_within(100, (2, 300), (6, 500), 256)
    (16, 1)
    """
    per_row = max(1.0, (many[1] - few[1]) / (many[0] - few[0]))
    fixed = few[1] - per_row * few[0]
    return max(1, min(most, int((limit - fixed) // per_row)))
