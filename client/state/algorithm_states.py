"""The algorithms' states in a site's runs (`strategies.advance.State`), one file each, named by run and digest.

A checkpoint names its state by digest. The state is written first, so that no checkpoint lacks its state; afterwards
states that no checkpoint names are removed. A checkpoint whose state is lost counts as lost too: the run's sums restore
both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.state.vectors import load_vectors, save_vectors
from privacy.errors import KeyFileError
from strategies.advance import State

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path


class States:
    """A folder with one file per state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, run: str, state: State) -> None:
        """Keep a state, before the checkpoint that names it is written."""
        path = self._path(run, state.digest)
        if state.vectors and not path.exists():
            save_vectors(path, state.vectors)

    def load(self, run: str, digest: str, names: Sequence[str], size: int) -> State | None:
        """Return the state with this digest, or None if it is lost.

        Args:
            run: digest of the manifest.
            digest: the state's digest; empty if there is none.
            names: names of its vectors.
            size: size of each vector.

        Raises:
            KeyFileError: if the file is damaged.
        """
        if not names:
            return None if digest else State()
        path = self._path(run, digest)
        if not digest or not path.exists():
            return None
        state = State(load_vectors(path, names, size))
        if state.digest != digest:
            msg = f"{path}: this state was altered; move it aside and restart the agent"
            raise KeyFileError(msg)
        return state

    def forget(self, run: str, but: Collection[str]) -> None:
        """Remove a run's states, except those with these digests."""
        kept = {self._path(run, digest) for digest in but}
        for path in self._folder.glob(f"{run[:16]}-*.state"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, run: str, digest: str) -> Path:
        return self._folder / f"{run[:16]}-{digest[:16]}.state"
