"""Files that count once a round's sum, with this site's update in it, has been opened; until then the old ones do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.storage import move

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.plan import RoundPlan


class PendingFiles:
    """A folder with one file per run, and one for the pending update."""

    def __init__(self, folder: Path, suffix: str, pending: str) -> None:
        self._folder, self._suffix, self._pending = folder, suffix, pending

    def current(self, run: str) -> Path:
        """Return where a run's file lies."""
        return self._folder / f"{run[:16]}.{self._suffix}"

    def begin(self, plan: RoundPlan) -> Path:
        """Return where to write a round's file, and drop what an earlier attempt left pending."""
        for older in self._folder.glob(f"{plan.run[:16]}-*.{self._pending}"):
            older.unlink()
        return self._of(plan)

    def settle(self, plan: RoundPlan, *, contributed: bool) -> None:
        """Once the round's sum is open, adopt the pending file, or drop it if the sum lacks this site's update."""
        pending = self._of(plan)
        if pending.exists() and contributed:
            move(pending, self.current(plan.run))
        else:
            pending.unlink(missing_ok=True)

    def _of(self, plan: RoundPlan) -> Path:
        return self._folder / f"{plan.run[:16]}-{plan.round}.{self._pending}"
