"""Several runs at a time use the keys of the same sites: no run changes these while another is in a round.

A site answers a plan only with its newest keys, and a newer roster asks for new keys. So runs are in rounds beside each
other, but make keys, or hand the sites a newer roster, one at a time, when no run is in a round. Whoever waits for that
keeps others from beginning another round, and so waits for the open rounds at most, which have deadlines.
"""

from __future__ import annotations

from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING

from strategies.interruption import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class KeyTurns:
    """What the runs of one server share to take turns. Thread-safe."""

    def __init__(self) -> None:
        self._free = Condition()
        self._rounds = self._waiting = 0  # runs that are in a round; those that wait to change keys
        self._alone = False
        self.changes = 0
        """How often the sites' keys or roster may have changed."""

    def enter(self, seen: int, check: Callable[[], None]) -> bool:
        """Begin a round once nobody changes keys; return False, and begin none, if there were changes since `seen`."""
        with self._free:
            while self._alone or self._waiting:
                self._free.wait(Interruption.SECONDS)
                check()
            if self.changes != seen:
                return False
            self._rounds += 1
            return True

    def leave(self) -> None:
        """End a round."""
        with self._free:
            self._rounds -= 1
            self._free.notify_all()

    @contextmanager
    def alone(self, check: Callable[[], None]) -> Iterator[None]:
        """Change keys within this context, once no other run is in a round or changes them.

        Args:
            check: called while this waits; whatever it raises ends the wait.
        """
        with self._free:
            self._waiting += 1
            try:
                while self._alone or self._rounds:
                    self._free.wait(Interruption.SECONDS)
                    check()
                self._alone = True
            finally:
                self._waiting -= 1
                self._free.notify_all()
        with self._changing():
            yield

    @contextmanager
    def now_or_never(self) -> Iterator[bool]:
        """Change keys within this context, if it yields True: no run is in a round or waits to change them."""
        with self._free:
            free = not (self._alone or self._rounds or self._waiting)
            self._alone = self._alone or free
        if not free:
            yield False
            return
        with self._changing():
            yield True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._free:
                self._alone = False
                self.changes += 1
                self._free.notify_all()


class KeyTurn:
    """One run's turns."""

    def __init__(self, turns: KeyTurns, check: Callable[[], None] = lambda: None) -> None:
        """Take what the run's server shares, and a function that is called while this waits: what it raises ends it."""
        self._turns, self._check = turns, check
        self._seen = turns.changes  # of the sites' keys and roster, when the run last asked sites for theirs
        self._in_round = False

    def asks_anew(self) -> None:
        """Note that the run forgets what it knows about the sites' keys, and asks for them from now on."""
        self._seen = self._turns.changes

    def begin(self) -> bool:
        """Begin a round; return False if the sites' keys may have changed since the run asked for them."""
        self._in_round = self._in_round or self._turns.enter(self._seen, self._check)
        return self._in_round

    def go_on(self) -> None:
        """Begin the round that an earlier process had begun, with the keys that the sites had then."""
        while not self.begin():
            self.asks_anew()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Change the sites' keys, and begin the round with them; yields False if they may have changed since."""
        with self._turns.alone(self._check):
            yield (known := self._turns.changes == self._seen)
            self._seen += known

    def end(self) -> None:
        """End the round, if it has begun."""
        if self._in_round:
            self._in_round = False
            self._turns.leave()
