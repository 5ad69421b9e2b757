"""Virtual time: a schedule of hours takes milliseconds, and every wait ends when the schedule says.

While it is on, `time.time`, `time.monotonic` and `threading.Event.wait` of this process use it; nothing sleeps.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """Seconds since the schedule began."""

    def __init__(self) -> None:
        self.now, self._began = 0.0, time.time()  # papers are valid from the real time on

    def wall(self) -> float:
        """Return the time in seconds since 1970."""
        return self._began + self.now

    def wait(self, seconds: float | None) -> bool:
        """Let time pass, as `Event.wait` of an event that nobody sets."""
        self.now += seconds or 0.0
        return False


@contextmanager
def virtual_time() -> Iterator[Clock]:
    """Use a virtual clock within this context."""
    clock = Clock()
    with ExitStack() as stack:
        stack.enter_context(replaced(time, "time", clock.wall))
        stack.enter_context(replaced(time, "monotonic", lambda: clock.now))
        stack.enter_context(replaced(threading.Event, "wait", lambda _, timeout=None: clock.wait(timeout)))
        yield clock


@contextmanager
def replaced(owner: object, name: str, value: Any) -> Iterator[None]:  # noqa: ANN401 - whatever stands there
    """Replace an attribute of a module or class within this context."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)
