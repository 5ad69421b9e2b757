"""What clipping and rounding left over of a site's updates, kept until it is added to the next one (error feedback).

It belongs to an update that the site has made private, so keeping and sending it later costs no further privacy. A
round's residual counts once that round's sum, with this site's update in it, was opened; until then the one before
it does: an update that never reached the model left nothing over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.storage import open_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.run.plan import RoundPlan

_STEP = 1 << 20  # values at a time


class Residuals:
    """A folder with one file of float32 a run, and one for the update that is under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add_to(self, vector: NDArray[np.float32], run: str) -> None:
        """Add what was left over to a new update `(n,)`, in place."""
        path = self._path(run)
        if path.exists() and path.stat().st_size == vector.nbytes:
            with open_file(path) as file:
                for start in range(0, vector.size, _STEP):
                    vector[start : start + _STEP] += np.fromfile(file, dtype="<f4", count=_STEP)

    def keep(self, plan: RoundPlan, vector: NDArray[np.float32]) -> None:
        """Note what an update left over, before it is sent."""
        for older in self._folder.glob(f"{plan.run[:16]}-*.pending"):
            older.unlink()
        write_atomically(self._pending(plan), vector.astype("<f4", copy=False).data)

    def settle(self, plan: RoundPlan, *, contributed: bool) -> None:
        """Take it over, now that the round's sum is open; or forget it, if the sum was without this site's update."""
        pending = self._pending(plan)
        if pending.exists() and contributed:
            pending.replace(self._path(plan.run))
        else:
            pending.unlink(missing_ok=True)

    def forget(self, run: str) -> None:
        """Forget what updates left over: the last one is not in the model any more."""
        self._path(run).unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.residual"

    def _pending(self, plan: RoundPlan) -> Path:
        return self._folder / f"{plan.run[:16]}-{plan.round}.pending"
