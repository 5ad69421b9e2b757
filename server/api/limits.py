"""How many requests are taken, before any of them costs much: token buckets, for each address and each person.

A bucket holds `burst` tokens and gains `rate` of them in a second; a request takes one, or has to wait. Which buckets
are kept is bounded: a bucket that was not used for long is full again, and forgetting it changes nothing.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_REMEMBERED = 4096  # buckets


class Buckets:
    """Counts requests. Thread-safe.

    >>> now = 0.0
    >>> buckets = Buckets(rate=2, burst=1, now=lambda: now)
    >>> buckets.take("ana"), buckets.take("ana"), buckets.take("ben")
    (0.0, 0.5, 0.0)
    """

    def __init__(self, rate: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        """Take the requests a second, how many may come at once, and a clock that never goes back."""
        self._rate, self._burst, self._now = rate, burst, now
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, at which time

    def take(self, key: str) -> float:
        """Take one token; return 0, or after how many seconds there is one."""
        with self._lock:
            tokens = self._tokens(key)
            if tokens < 1:
                return (1 - tokens) / self._rate
            self._keep(key, tokens - 1)
            return 0.0

    def give(self, key: str) -> None:
        """Give a token back that was taken."""
        with self._lock:
            self._keep(key, min(self._burst, self._tokens(key) + 1))

    def wait(self, key: str) -> float:
        """Return 0 if there is a token, or after how many seconds there is one; take none."""
        with self._lock:
            return max(0.0, (1 - self._tokens(key)) / self._rate)

    def _tokens(self, key: str) -> float:
        now = self._now()
        tokens, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + (now - then) * self._rate)

    def _keep(self, key: str, tokens: float) -> None:
        self._buckets[key] = tokens, self._now()
        self._buckets.move_to_end(key)
        while len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
