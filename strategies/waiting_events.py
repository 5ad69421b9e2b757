"""Report which sites a run waits for while they gather, so that nobody has to guess."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.event_log import EventLog

_SECONDS = 30.0  # between events, if nothing has changed


@dataclass
class Waiting:
    """Reports the wait: at once when a site says why it does not take part, otherwise now and then."""

    event_log: EventLog
    last: float
    reported: dict[str, str] = field(default_factory=dict)

    def say(self, here: list[str], minimum: int, problems: dict[str, str], absent: dict[str, str]) -> None:
        """Record who is here, how many are needed and what is missing, if it is new or time to repeat it."""
        now = time.monotonic()
        if problems != self.reported or now - self.last > _SECONDS:
            self.last, self.reported = now, dict(problems)
            self.event_log.record("waiting", sites=here, minimum=minimum, problems=absent | problems)
