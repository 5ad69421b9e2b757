"""How a run stands at its server."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

STATUSES = ("waiting", "running", "finished", "failed", "stopped")
"""How a run may stand."""

ENDED = frozenset({"finished", "failed", "stopped"})
"""Of runs that will not go on by themselves."""


@dataclass(frozen=True)
class RunStatus:
    """A run, as it stands at the server. Times are in seconds since 1970."""

    digest: str
    name: str
    by: str  # who signed it
    submitted: float
    status: str  # one of `STATUSES`
    reason: str  # why it failed or was stopped
    started: float | None
    ended: float | None
    rounds: int
    released: int  # rounds that released a sum
    behind: tuple[str, ...] = ()  # once it has ended: sites that get its last model when they are online again
