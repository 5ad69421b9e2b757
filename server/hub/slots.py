"""A semaphore of an event loop that any thread may release, which wakes the loop only if somebody waits."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

_LOOKS = 4  # in the time for a step


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

    @asynccontextmanager
    async def kept_busy(self, step: int, seconds: float) -> AsyncGenerator[Callable[[int], None]]:
        """Let who has a slot keep it, in this context, while nobody waits for one, or it is made use of.

        Args:
            step: how much has to be done with it.
            seconds: in which time, again and again.

        Yields:
            what to call with how much was done.

        Raises:
            TimeoutError: once it took longer, and somebody waits.
        """
        loop = asyncio.get_running_loop()
        done, since = 0, loop.time()
        next_look: asyncio.TimerHandle

        def use(amount: int) -> None:
            nonlocal done, since
            done += amount
            if done >= step:
                done, since = 0, loop.time()

        def look() -> None:
            nonlocal next_look
            if self._waiting and loop.time() - since >= seconds:
                ends.reschedule(0.0)
            else:
                next_look = loop.call_later(seconds / _LOOKS, look)

        async with asyncio.timeout(None) as ends:
            next_look = loop.call_later(seconds / _LOOKS, look)
            try:
                yield use
            finally:
                next_look.cancel()

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
