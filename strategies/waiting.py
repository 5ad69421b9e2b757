"""Says whom a run waits for while its sites gather: whoever looks at it shall not have to guess."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from strategies.membership import Membership

_SECONDS = 30.0  # between two events, if nothing is new


@dataclass
class Waiting:
    """Says who is waited for: at once if a site said why it does not take part, and now and then."""

    members: Membership
    minimum: int
    last: float
    said: dict[str, str] = field(default_factory=dict)

    def say(self, here: list[str], absent: dict[str, str]) -> None:
        """Record it, if there is something new."""
        members, now = self.members, time.monotonic()
        if members.problems != self.said or now - self.last > _SECONDS:
            self.last, self.said = now, dict(members.problems)
            needed = self.minimum if members.begun else len(members.listed)
            members.journal.record("waiting", sites=here, minimum=needed, problems=absent | members.problems)
