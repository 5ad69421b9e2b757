"""Vectors that an algorithm keeps at a site from round to round (`Algorithm.own`), such as SCAFFOLD's control variate.

They are computed from noisy updates, and never leave the site by themselves. New vectors count once the round's sum,
with this site's update in it, has been opened; until then the old ones do. A site that is restored without its outbox
starts again at zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.state.vectors import load_vectors, save_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from privacy.run.plan import RoundPlan
    from strategies.algorithm import Values


class Own:
    """A folder with one file per run, and one for the pending update."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, run: str, names: Sequence[str], size: int) -> dict[str, Values]:
        """Return the vectors `(size,)` with these names; zeros before the first round.

        Raises:
            KeyFileError: if the file is damaged.
        """
        path = self._path(run)
        if not names or not path.exists():
            return {name: np.zeros(size) for name in names}
        return load_vectors(path, names, size)

    def keep(self, plan: RoundPlan, vectors: Mapping[str, Values]) -> None:
        """Keep a round's new vectors as pending, before its update is sent."""
        for older in self._folder.glob(f"{plan.run[:16]}-*.own-pending"):
            older.unlink()
        save_vectors(self._pending(plan), vectors)

    def settle(self, plan: RoundPlan, *, contributed: bool) -> None:
        """Once the round's sum is open, adopt the pending vectors, or drop them if the sum lacks this site's update."""
        pending = self._pending(plan)
        if pending.exists() and contributed:
            pending.replace(self._path(plan.run))
        else:
            pending.unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.own"

    def _pending(self, plan: RoundPlan) -> Path:
        return self._folder / f"{plan.run[:16]}-{plan.round}.own-pending"
