"""Vectors that an algorithm keeps at a site from round to round (`Algorithm.own`), such as SCAFFOLD's control variate.

They are computed from noisy updates, and never leave the site by themselves. New vectors count once the round's sum,
with this site's update in it, has been opened; until then the old ones do. A site that is restored without its outbox
starts again at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.state.pending import PendingFiles
from client.state.vectors import load_vectors, save_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from privacy.run.plan import RoundPlan
    from strategies.algorithm import Values


class Own(PendingFiles):
    """A folder with one file per run, and one for the pending update."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "own", "own-pending")

    def load(self, run: str, names: Sequence[str], size: int) -> dict[str, Values]:
        """Return the vectors `(size,)` with these names; zeros before the first round.

        Raises:
            KeyFileError: if the file is damaged.
        """
        path = self.current(run)
        if not names or not path.exists():
            return {name: np.zeros(size) for name in names}
        return load_vectors(path, names, size)

    def keep(self, plan: RoundPlan, vectors: Mapping[str, Values]) -> None:
        """Keep a round's new vectors as pending, before its update is sent."""
        save_vectors(self.begin(plan), vectors)
