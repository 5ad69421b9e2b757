"""One run that is being served, in a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from strategies.interruption import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds until a run is tried again that could not go on because of the store or a disk."""


class Running:
    """A run's thread, and what it left if it ended without an outcome of the run."""

    def __init__(self, digest: str, label: str, serve: Callable[[Running], None], tries: int = 0) -> None:
        """Take the run, what its thread is called and does, and how often it was tried before in vain."""
        self.digest, self.label, self.tries = digest, label, tries
        self.interruption = Interruption()
        self.error: BaseException | None = None  # what prevented the run, and is not the run's own failure
        self._ended: float | None = None  # by the monotonic clock
        self._thread = threading.Thread(target=self._serve, args=(serve,), name=label, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def _serve(self, serve: Callable[[Running], None]) -> None:
        try:
            serve(self)
        finally:
            self._ended = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether the thread has ended."""
        return self._ended is not None

    @property
    def waits(self) -> bool:
        """Whether it is too early to try again what could not go on."""
        pause = min(FIRST_PAUSE * 2**self.tries, LONGEST_PAUSE)
        return self._ended is not None and time.monotonic() - self._ended < pause

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended, at most so long; return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
