"""Process a long stream in several processes: SEAL's binding holds Python's lock, so threads would not help."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import connection
from typing import TYPE_CHECKING, Protocol, TypeVar

from privacy.errors import EncryptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

A = TypeVar("A")
B = TypeVar("B")

_FEW = 32  # items that this process finishes before others would have started
_AHEAD = 2  # items per process: one in progress, one waiting


class Apply(Protocol):
    """Applies a function to each item, in order and lazily, as the built-in `map` does."""

    def __call__(self, work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Return the results, in the order of the items."""
        ...


def in_processes(count: int, few: int = _FEW) -> Apply:
    """Return a `map` that uses `count` processes for streams of more than `few` items, with bounded memory.

    The processes are spawned, because forking a process with threads can deadlock; so the program must be importable.
    They end with the stream, or with this process, however it ends.
    """

    def apply(work: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        stream = iter(items)
        yield from map(work, islice(stream, few))
        for item in stream:
            yield from _shared_out(work, chain([item], stream), count)

    return apply if count > 1 else map


def _shared_out(work: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    pending: deque[Future[B]] = deque()
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_prepare) as pool:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= _AHEAD * count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except BrokenProcessPool as error:
        msg = (
            "an encryption process was killed from outside; check that this machine has memory for the "
            "encryption_processes in site.toml"
        )
        raise EncryptionError(msg) from error


def _prepare() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
