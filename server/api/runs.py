"""What the API needs of the service whose runs it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from privacy.run.roster import Roster
    from server.service.status import ServiceStatus
    from server.store.store import Store, StoredRun


class Runs(Protocol):
    """The service: `server.service`. Its methods are called from many threads at once."""

    @property
    def store(self) -> Store:
        """The runs, their events, and people's sessions."""
        ...

    def roster(self) -> Roster:
        """Return the roster in force."""
        ...

    def submit(self, document: bytes, by: str) -> StoredRun:
        """Check a signed run and queue it; the same one again returns what is there.

        Raises:
            CloisterError: if it cannot run.
        """
        ...

    def stop(self, digest: str, by: str, reason: str) -> None:
        """Stop a run after the message in hand."""
        ...

    def retry(self, digest: str, by: str) -> None:
        """Put a run that failed back into the queue."""
        ...

    def status(self) -> ServiceStatus:
        """Return what the service does now."""
        ...
