"""Report which sites a run waits for before a round, so that nobody has to guess."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from strategies.event_log import EventLog
    from strategies.membership import Membership

ELSEWHERE = "it is at work for another run"
_SECONDS = 30.0  # between events, if nothing has changed
_SHORTEST, _LONGEST = 0.25, 600.0  # seconds after an event; they double with each, so that no site can write many


@dataclass
class Waiting:
    """Reports the wait: soon when a site says why it does not take part, otherwise now and then; ever more rarely."""

    event_log: EventLog
    last: float
    reported: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0  # after the last event

    def say(self, here: list[str], minimum: int, problems: dict[str, str], absent: dict[str, str]) -> None:
        """Record who is here, how many are needed and what is missing, if it is new or time to repeat it."""
        now = time.monotonic()
        if now - self.last >= (self.pause if problems != self.reported else max(_SECONDS, self.pause)):
            self.last, self.reported = now, dict(problems)
            self.pause = min(max(_SHORTEST, 2 * self.pause), _LONGEST)
            self.event_log.record("waiting", sites=here, minimum=minimum, problems=absent | problems)


def begin_round(members: Membership, grid: Grid, sites: list[str], minimum: int) -> list[str]:
    """Have these sites for one run until its round ends; return them, without those that left if that took long."""
    nodes, late = {site: members.nodes[site] for site in sites}, list[int]()

    def waits(busy: set[int]) -> None:
        late.extend(busy)
        here = [site for site in sites if nodes[site] not in busy]
        problems = dict.fromkeys((site for site in sites if nodes[site] in busy), ELSEWHERE)
        members.event_log.record("waiting", sites=here, minimum=minimum, problems=problems)

    members.attention.begin_round(set(nodes.values()), waits)
    online = set(grid.get_node_ids()) if late else set(nodes.values())
    return [site for site in sites if nodes[site] in online]
