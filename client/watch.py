"""What an agent has done so far, for whoever watches it: plain numbers, which cost nothing if nobody does."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Watch:
    """Written by the agent's thread, read by others."""

    trouble: str = "it has not reached the server yet"  # why the agent is not online; empty if it is
    round: int = 0  # the last that it trained; 0: none yet
    trained_at: float = 0.0  # when, in seconds since 1970
    trained: int = 0  # rounds since the agent started
    refusals: Counter[str] = field(default_factory=Counter)  # by kind of error

    def note_training(self, number: int) -> None:
        """Note a round whose update was made."""
        self.round, self.trained_at = number, time.time()
        self.trained += 1

    def note_refusal(self, error: BaseException) -> None:
        """Note a message that the agent answered with an error."""
        self.refusals[type(error).__name__ if type(error).__module__ == "privacy.errors" else "Unexpected"] += 1
