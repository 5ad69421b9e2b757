"""Virtual time and drawn chance: a schedule of hours takes milliseconds, and goes the same way in every process.

While it is on, `time.time`, `time.monotonic` and `threading.Event.wait` of this process use it; nothing sleeps. What
the system would draw, such as nonces, comes from a seed. What OpenSSL and SEAL draw themselves does not: signing keys,
encapsulated keys, keys of CKKS and ciphertexts. Their lengths are always the same.
"""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


_BEGAN = 1_767_225_600.0  # 2026 in UTC: before any file was made


class Clock:
    """Seconds since the schedule began."""

    def __init__(self) -> None:
        self.now = 0.0

    def wall(self) -> float:
        """Return the time in seconds since 1970."""
        return _BEGAN + self.now

    def wait(self, seconds: float | None) -> bool:
        """Let time pass, as `Event.wait` of an event that nobody sets."""
        self.now += seconds or 0.0
        return False


@contextmanager
def virtual_time(seed: int) -> Iterator[Clock]:
    """Use a virtual clock, and chance from a seed, within this context."""
    clock, chance = Clock(), random.Random(seed)  # noqa: S311 - guards nothing
    with ExitStack() as stack:
        stack.enter_context(replaced(time, "time", clock.wall))
        stack.enter_context(replaced(time, "monotonic", lambda: clock.now))
        stack.enter_context(replaced(threading.Event, "wait", lambda _, timeout=None: clock.wait(timeout)))
        stack.enter_context(replaced(os, "urandom", chance.randbytes))
        stack.enter_context(replaced(random, "_urandom", chance.randbytes))  # `secrets` draws from it
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
