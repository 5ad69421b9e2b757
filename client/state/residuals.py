"""Residuals: what clipping and rounding cut off a site's update, kept and added to the next one (error feedback).

A residual is part of an update that is already private, so keeping it and sending it later costs no further privacy. A
round's residual counts once the round's sum, with this site's update in it, has been opened; until then the previous
one does: an update that never reached the model leaves no residual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.state.pending import PendingFiles
from privacy.storage import open_file, size_of, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.run.plan import RoundPlan

_STEP = 1 << 20  # values at a time


class Residuals(PendingFiles):
    """A folder with one float32 file per run, and one for the pending update."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "residual", "pending")

    def add_to(self, vector: NDArray[np.float32], run: str) -> None:
        """Add the residual to a new update `(n,)`, in place."""
        path = self.current(run)
        if path.exists() and size_of(path) == vector.nbytes:
            with open_file(path) as file:
                for start in range(0, vector.size, _STEP):
                    vector[start : start + _STEP] += np.frombuffer(file.read(4 * _STEP), dtype="<f4")

    def keep(self, plan: RoundPlan, vector: NDArray[np.float32]) -> None:
        """Keep an update's residual as pending, before the update is sent."""
        write_atomically(self.begin(plan), vector.astype("<f4", copy=False).data)

    def forget(self, run: str) -> None:
        """Drop a run's residual: its update is no longer in the model."""
        self.current(run).unlink(missing_ok=True)
