"""What the API needs of the service whose runs it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from privacy.run.roster import Roster
    from server.service.service import ServiceStatus
    from server.store.store import Store, StoredRun


class Runs(Protocol):
    """The service: `server.service`. Its methods are called from many threads at once."""

    @property
    def store(self) -> Store:
        """The runs, their events, and people's sessions."""
        ...

    def roster(self) -> Roster | None:
        """Return the newest roster; None before there is one."""
        ...

    def submit(self, document: bytes, by: str) -> StoredRun:
        """Check a signed run, and have it wait for its turn; the same one again changes nothing.

        Raises:
            CloisterError: if nobody who may sign runs signed it, or it cannot run.
        """
        ...

    def stop(self, name: str, by: str, reason: str = "") -> StoredRun:
        """End a run that waits or goes on.

        Raises:
            CloisterError: if it has ended already.
        """
        ...

    def retry(self, name: str, by: str) -> StoredRun:
        """Have a run that failed or was stopped wait for its turn again.

        Raises:
            CloisterError: if it has not ended, or not so.
        """
        ...

    def status(self) -> ServiceStatus:
        """Return how the server stands."""
        ...
