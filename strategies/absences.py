"""Tell people which sites an open round waits for that are not online, until when, and that they are back.

The round still waits for them until its deadline: an agent that returns sends the update that its site was charged for.
A site that keeps leaving and coming back is reported ever more rarely, so that the list of events stays short.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from strategies.event_log import EventLog

PATIENCE = 5.0
"""Seconds that a site may be away before anybody is told: agents reconnect. They double with each report in a round."""

_LOOK = 1.0  # seconds between looks at who is online, while nobody has been reported


class Absences:
    """Records the events `away` and `back` of one run."""

    def __init__(
        self,
        event_log: EventLog,
        online: Callable[[], Iterable[int]],
        where: Callable[[], tuple[int, dict[int, str]]],
    ) -> None:
        """Take what returns the nodes that are online, and what returns the open round and each node's site."""
        self._event_log, self._online, self._where = event_log, online, where
        self._looked, self._round = 0.0, 0
        self._since = dict[int, float]()  # nodes that are away, by a clock that nobody sets
        self._reported = set[int]()
        self._patience = defaultdict[int, float](lambda: PATIENCE)

    def look(self, awaited: AbstractSet[int], left: float) -> None:
        """Note who is away.

        Args:
            awaited: the nodes whose replies are awaited.
            left: the seconds for which they are.
        """
        if not self._reported and time.monotonic() - self._looked < _LOOK:
            return
        self._looked = now = time.monotonic()
        online = set(self._online())
        number, names = self._where()
        if number != self._round:
            self._round = number
            for known in (self._since, self._reported, self._patience):
                known.clear()
        if back := self._reported & online:
            self._reported -= back
            self._event_log.record("back", round=number, sites=_named(back, names))
        self._since = {node: self._since.get(node, now) for node in (awaited | self._reported) - online}
        away = {node for node, since in self._since.items() if now - since >= self._patience[node]} - self._reported
        if away:
            self._reported |= away
            for node in away:
                self._patience[node] *= 2
            since, here = min(self._since[node] for node in away) - now, time.time()
            self._event_log.record(
                "away", round=number, sites=_named(away, names), since=round(here + since, 3),
                until=round(here + left, 3),
            )  # fmt: skip


def _named(nodes: Iterable[int], names: dict[int, str]) -> list[str]:
    return sorted(names.get(node, f"node {node}") for node in nodes)
