"""Where a site keeps the steps of the round that it trains: see `client.dpsgd.kept_steps`."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from client.dpsgd.kept_steps import StepsFile, kept_for

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from privacy.ledger.ledger import Charge

FOLDER = "partial"
"""The folder in a site's folder."""

_SUFFIX = ".steps"


class PartialRounds:
    """A folder with one file per run, while the site trains."""

    def __init__(self, folder: Path, every: int) -> None:
        """Take the folder, and after how many steps to keep them; 0 for never."""
        self._folder, self._every = folder, every

    def file(self, charge: Charge, model: str, records: bytes, expires: float) -> StepsFile:
        """Return where to keep the steps taken under a charge.

        Args:
            charge: the round's.
            model: digest of the model from which the round starts.
            records: digest of the records.
            expires: when the run does, in seconds since 1970.
        """
        purpose = sha256(json.dumps([charge.release.run, charge.release.round, model, records.hex()]).encode())
        return StepsFile(self._path(charge.release.run), self._every, charge.head, purpose.digest(), expires)

    def forget(self, run: str) -> None:
        """Delete what is kept of a run's round: its update is made, has failed, or is not wanted any more."""
        self._path(run).unlink(missing_ok=True)

    def sweep(self, charges: Collection[str]) -> None:
        """Delete all files but those of charges, given by their heads, under which nothing has left.

        Also those of runs that have expired: one that was stopped in mid-round leaves its charge as it is.
        """
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if (found := kept_for(path)) is None or found.charge not in charges or found.expires < time.time():
                path.unlink(missing_ok=True)

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}{_SUFFIX}"
