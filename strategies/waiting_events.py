"""Report which sites a run waits for while they gather, so that nobody has to guess."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.event_log import EventLog

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
