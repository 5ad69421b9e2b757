"""What operators see of a server at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class ServerState:
    """A server at one moment."""

    leading: bool
    troubles: tuple[str, ...] = ()  # why it cannot do what it is there for, besides leading
    members: frozenset[str] = frozenset()  # sites of the roster
    online: frozenset[str] = frozenset()
    runs: Mapping[str, int] = field(default_factory=dict)  # how many have each status
    ends: Mapping[str, float] = field(default_factory=dict)  # of certificate and roster, in seconds since 1970

    @property
    def unready(self) -> tuple[str, ...]:
        """Why it is not ready; nothing if it is. Whose store has trouble cannot know whether another process leads."""
        if self.leading or self.troubles:
            return self.troubles
        return ("another process leads; this one waits to take over",)
