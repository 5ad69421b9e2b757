"""A run's model at one site: one safetensors file a run, replaced as a whole after every round.

The file is the same, bit for bit, at every site that has opened the same sums.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy.errors import KeyFileError
from privacy.storage import write_atomically
from privacy.update import Layout, Model

if TYPE_CHECKING:
    from pathlib import Path

_NOTE = "cloister"


@dataclass(frozen=True)
class Checkpoint:
    """A model, and after which round of which run it stands. Round 0 is the untrained model."""

    run: str
    round: int
    model: Model


class CheckpointStore:
    """The checkpoints of one site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, tuple[tuple[int, int], Checkpoint]] = {}  # with the stamp of the file that it came from

    def path(self, name: str, run: str) -> Path:
        """Return where a run's model lies."""
        return self._folder / f"{name}-{run[:8]}.safetensors"

    def load(self, name: str, run: str, layout: Layout) -> Checkpoint | None:
        """Return the latest checkpoint of a run, or None before its first round.

        Raises:
            KeyFileError: if the file is damaged or of another model.
        """
        path = self.path(name, run)
        if not path.exists():
            return None
        stamp = _stamp(path)
        if run in self._held and self._held[run][0] == stamp:
            return self._held[run][1]
        data = path.read_bytes()
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            note = json.loads(header["__metadata__"][_NOTE])
            number, digest, said = int(note["round"]), note["model"], note["run"]
            model = Model(layout.flatten({name: tensors[name].astype(np.float32) for name, _ in layout.shapes}), layout)
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            msg = f"{path}: this checkpoint is damaged ({error}); move it aside and restart the agent"
            raise KeyFileError(msg) from error
        if said != run or model.digest != digest:
            msg = f"{path}: this checkpoint was altered, or is of another run; move it aside and restart the agent"
            raise KeyFileError(msg)
        self._held[run] = stamp, Checkpoint(run, number, model)
        return self._held[run][1]

    def save(self, name: str, checkpoint: Checkpoint) -> Path:
        """Replace a run's model, so that a crash leaves the old or the new one."""
        path = self.path(name, checkpoint.run)
        tensors = {key: np.ascontiguousarray(value) for key, value in
                   checkpoint.model.layout.unflatten(checkpoint.model.vector).items()}  # fmt: skip
        note = {"run": checkpoint.run, "round": checkpoint.round, "model": checkpoint.model.digest}
        # One entry only: safetensors writes several in an order that differs from call to call.
        write_atomically(path, save(tensors, metadata={_NOTE: json.dumps(note)}))
        self._held[checkpoint.run] = _stamp(path), checkpoint
        return path


def _stamp(path: Path) -> tuple[int, int]:
    """Tell one version of a file from the next: Flower's engine runs one site in several processes in turn."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns
