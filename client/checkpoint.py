"""A run's model at one site: one safetensors file a run, replaced as a whole after every round.

The file is the same, bit for bit, at every site that has opened the same sums.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from privacy.errors import KeyFileError
from privacy.storage import write_atomically
from privacy.update import Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.update import Layout

_NOTE = "cloister"


@dataclass(frozen=True)
class Checkpoint:
    """A model, and after which round of which run it stands. Round 0 is the untrained model."""

    run: str
    round: int
    model: Model
    update_bound: float  # the codec's range for the next round's updates


class CheckpointStore:
    """The checkpoints of one site: on disk only, since a model may take much of the memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
        try:
            with safe_open(path, framework="numpy") as file:
                note = json.loads(file.metadata()[_NOTE])
                model = Model(_flat(file.get_tensor, layout), layout)
            checkpoint = Checkpoint(run, int(note["round"]), model, float(note["update_bound"]))
            digest, said = note["model"], note["run"]
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            msg = f"{path}: this checkpoint is damaged ({error}); move it aside and restart the agent"
            raise KeyFileError(msg) from error
        if said != run or model.digest != digest:
            msg = f"{path}: this checkpoint was altered, or is of another run; move it aside and restart the agent"
            raise KeyFileError(msg)
        return checkpoint

    def save(self, name: str, checkpoint: Checkpoint) -> Path:
        """Replace a run's model, so that a crash leaves the old or the new one."""
        path = self.path(name, checkpoint.run)
        note = {
            "run": checkpoint.run,
            "round": checkpoint.round,
            "model": checkpoint.model.digest,
            "update_bound": checkpoint.update_bound,
        }
        header: dict[str, object] = {"__metadata__": {_NOTE: json.dumps(note)}}
        start = 0
        for tensor, shape in checkpoint.model.layout.shapes:
            end = start + 4 * math.prod(shape)
            header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
            start = end
        # The library would hold the model twice more; what it reads is a length, JSON padded to 8 bytes, the values.
        data = json.dumps(header).encode()
        data += b" " * (-len(data) % 8)
        values = np.ascontiguousarray(checkpoint.model.vector, dtype="<f4")
        write_atomically(path, len(data).to_bytes(8, "little"), data, values.data)
        return path


def _flat(tensor: Callable[[str], NDArray[Any]], layout: Layout) -> NDArray[np.float32]:
    """Read all tensors, one at a time, into `(size,)`."""
    vector, start = np.empty(layout.size, dtype=np.float32), 0
    for name, shape in layout.shapes:
        values = tensor(name)
        if values.shape != shape:
            msg = f"{name} has another shape"
            raise ValueError(msg)
        vector[start : start + values.size] = values.reshape(-1)
        start += values.size
    return vector
