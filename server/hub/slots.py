"""A semaphore of an event loop that any thread may release, which wakes the loop only if somebody waits."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress


class Slots:
    """A fixed number of slots. `acquire` belongs to one event loop; `release` to any thread."""

    def __init__(self, count: int) -> None:
        self._free, self._lock = count, threading.Lock()
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        """Take a slot; wait for one if all are taken, in order of arrival."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock:
                free = turn not in self._waiting
                if not free:
                    self._waiting.remove(turn)
            if free:
                self.release()
            raise

    def release(self) -> None:
        """Free a slot, or give it to whoever has waited longest."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            turn = self._waiting.popleft()
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            turn.get_loop().call_soon_threadsafe(_give, turn)


def _give(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
