"""How a run is asked to end before its last round, by whoever stops it or because the server's process ends.

A run that is stopped leaves no sum behind that only some sites have: once a round's sum is released, the round goes on
to its end. A process that ends needs no such care, since the next one goes on where it ended.
"""

from __future__ import annotations

from threading import Event


class RunInterrupted(BaseException):
    """A run was asked to end before its last round. Nobody sees this: whoever serves the run catches it."""


class Interruption:
    """Asks one run to end. Whatever waits for the run's sites calls `check` at least every `SECONDS`."""

    SECONDS = 0.25

    def __init__(self) -> None:
        self._stopped, self._ending = Event(), Event()
        self.reason = ""  # why the run was stopped; nothing if it was not
        self.delivering = False  # whether a sum is released that some sites may still lack

    def stop(self, reason: str) -> None:
        """End the run at the latest with its open round."""
        self.reason = reason
        self._stopped.set()

    def end(self) -> None:
        """End the run as soon as the reply in hand is dealt with."""
        self._ending.set()

    def check(self) -> None:
        """Leave the run, if it was asked to end.

        Raises:
            RunInterrupted: if it was.
        """
        if self._ending.is_set() or (self._stopped.is_set() and not self.delivering):
            raise RunInterrupted
