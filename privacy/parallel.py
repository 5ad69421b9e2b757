"""Work on a stream, over several processes: SEAL's binding holds Python's lock, so threads would not help."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import connection
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

A = TypeVar("A")
B = TypeVar("B")

_FEW = 4  # items, which this process does by itself sooner than another one starts
_AHEAD = 2  # items a process: one that it works on, one that waits


class Apply(Protocol):
    """Applies a function to each item, in order and lazily, as the built-in `map` does."""

    def __call__(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Return the results, in the order of the items."""
        ...


@contextmanager
def in_processes(count: int) -> Iterator[Apply]:
    """Provide a `map` over so many processes, which never holds more than a few items.

    They start when a long stream comes, end with this context, and never outlive this process.
    """
    spawning = multiprocessing.get_context("spawn")  # to fork a process that has threads can lock up the child
    with ProcessPoolExecutor(count, mp_context=spawning, initializer=_prepare) as pool:

        def apply(work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
            stream = iter(items)
            few = list(islice(stream, _FEW))
            if len(few) < _FEW:
                yield from map(work, few)
                return
            pending: deque[Future[B]] = deque()
            for item in chain(few, stream):
                pending.append(pool.submit(work, item))
                if len(pending) >= _AHEAD * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

        yield apply


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
