"""Several runs have work for the same sites: each reaches a site in its turn, so that no deadline passes meanwhile.

A site answers one message after another. Behind the message of a run that trains for an hour, another run's plan of a
minute would be over before the site had read it. So a round has its sites for itself, each from the plan until it has
opened the sum, at the latest until the round ends; any other exchange has them while it lasts. Whoever waits for a site
stands in line, and waits for rounds, which have deadlines.

No run waits for anything else while it has sites: it lets them go before it stands in line for others, or waits until
it may change keys (`strategies.key_turns`). So no two runs wait for each other.
"""

from __future__ import annotations

import time
from collections import defaultdict
from threading import Condition
from typing import TYPE_CHECKING

from strategies.interruption import Interruption

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet


PATIENCE = 5.0
"""Seconds that a run waits for others before anybody is told."""


class SiteTurns:
    """What the runs of one server share to take turns, by the sites' nodes. Thread-safe."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.lines = defaultdict[int, list["SiteTurn"]](list)  # for each node: who has it, then who waits

    def turn(self, check: Callable[[], None]) -> SiteTurn:
        """Return the turns of one run, which calls `check` while it waits: what it raises ends the wait."""
        return SiteTurn(self, check)


class SiteTurn:
    """One run's turns."""

    def __init__(self, turns: SiteTurns | None = None, check: Callable[[], None] = lambda: None) -> None:
        self._turns, self._check = turns or SiteTurns(), check

    def line_up(self, nodes: AbstractSet[int]) -> set[int]:
        """Stand in line for these nodes, and let go of all others; return those that are this run's now."""
        with self._turns.changed:
            lines = self._turns.lines
            for node in [node for node, line in lines.items() if self in line and node not in nodes]:
                lines[node].remove(self)
                self._turns.changed.notify_all()
            for node in nodes:
                if self not in lines[node]:
                    lines[node].append(self)
            return {node for node in nodes if lines[node][0] is self}

    def take(self, nodes: AbstractSet[int], waits: Callable[[set[int]], None] = lambda _: None) -> None:
        """Let go of all nodes, and wait until these are this run's.

        If that takes long, `waits` is called, once, with those that others have.
        """
        self.leave()
        tell = time.monotonic() + PATIENCE
        while (mine := self.line_up(nodes)) != nodes:
            if time.monotonic() > tell:
                waits(set(nodes - mine))
                tell = float("inf")
            with self._turns.changed:
                self._turns.changed.wait_for(lambda: self.line_up(nodes) == nodes, Interruption.SECONDS)
            self._check()

    def release(self, node: int) -> None:
        """Let go of one node."""
        with self._turns.changed:
            if self in self._turns.lines[node]:
                self._turns.lines[node].remove(self)
                self._turns.changed.notify_all()

    def leave(self) -> None:
        """Let go of all nodes."""
        self.line_up(set())
