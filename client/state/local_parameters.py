"""The trained parameters that stay at a site (`Task.local`), from round to round and across restarts.

They come from the same noisy steps as the update of their round, which the ledger was charged for. As with an
algorithm's own vectors, new values count once the round's sum, with this site's update in it, has been opened. If the
file is lost, the site starts again at the values that the task makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.state.pending import PendingFiles
from privacy.errors import KeyFileError
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.codec.update import Shapes
    from privacy.run.plan import RoundPlan


FOLDER = "local"
"""The folder in a site's folder."""


class LocalParameters(PendingFiles):
    """A folder with one safetensors file per run, and one for the pending update."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "safetensors", "pending")

    def load(self, run: str, shapes: Shapes) -> dict[str, NDArray[np.float32]] | None:
        """Return a run's parameters by name; None before the first round with this site's update in its sum.

        Raises:
            KeyFileError: if the file is damaged, or has other parameters.
        """
        path = self.current(run)
        if not run or not shapes or not path.exists():
            return None
        try:
            values = load(read_file(path))
        except (SafetensorError, KeyError, ValueError, OverflowError) as error:
            msg = f"{path}: this file is damaged ({type(error).__name__}); restore it from the site's backup"
            raise KeyFileError(msg) from error
        if {name: (array.shape, array.dtype) for name, array in values.items()} != {
            name: (shape, np.dtype("<f4")) for name, shape in shapes
        } or not all(np.isfinite(array).all() for array in values.values()):
            msg = (
                f"{path}: this file does not have the parameters that this run's task keeps at the site; restore it "
                "from the site's backup, or move it aside to start them again"
            )
            raise KeyFileError(msg)
        return values

    def keep(self, plan: RoundPlan, values: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep a round's new parameters as pending, before its update is sent."""
        if values:
            data = save({name: np.ascontiguousarray(value) for name, value in values.items()})
            write_atomically(self.begin(plan), data)
