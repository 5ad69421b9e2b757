"""A run's model at one site: one safetensors file a run, replaced as a whole after every round.

The file is the same, bit for bit, at every site that has opened the same sums. A safetensors file is a length, a header
in JSON padded to 8 bytes, and the values. It is written and read here without the library, which would hold the model
once more each time. Beside what is trained it has the model's constants, as `state_dict` does, for whoever uses the
model: a site itself takes them from its task, or from the model that the run starts from.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from client.state import WIDTHS
from privacy.errors import KeyFileError
from privacy.storage import link_atomically, open_file, write_atomically
from privacy.update import Model
from strategies.advance import State

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from privacy.update import Constant, Layout

_NOTE = "cloister"
_FLOAT = 4  # bytes
MISREAD = KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError, RecursionError


@dataclass(frozen=True)
class Checkpoint:
    """A model, and after which round of which run it stands. Round 0 is the untrained model."""

    run: str
    round: int
    model: Model
    update_bound: float  # the codec's range for the next round's updates
    average: str = ""  # digest of the mean that is kept beside it, if one is; of a mean, that of the one before it
    averaged: int = 0  # of a mean: of how many rounds
    state: State = field(default_factory=State)  # what the algorithm keeps beside the model; of a mean, nothing

    @cached_property
    def digest(self) -> str:
        """What all sites must agree on: the digest of the model, and of the mean and the state if there are any."""
        found = self.model.digest
        if self.average:
            found = sha256(b"cloister average" + bytes.fromhex(found + self.average)).hexdigest()
        if self.state.digest:
            found = sha256(b"cloister checkpoint" + bytes.fromhex(found + self.state.digest)).hexdigest()
        return found


class CheckpointStore:
    """The checkpoints of one site: on disk only, since a model may take much of the memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, run: str) -> Path:
        """Return where a run's model lies."""
        return self._folder / f"{name}-{run[:8]}.safetensors"

    def peek(self, name: str, run: str) -> tuple[int, str, str, str] | None:
        """Return round, model's digest, average and state's digest that a run's file claims; None if no file does."""
        try:
            with open_file(self.path(name, run)) as file:
                note = json.loads(json.loads(read_header(file))["__metadata__"][_NOTE])
            return int(note["round"]), str(note["model"]), str(note["average"]), str(note["state"])
        except (OSError, *MISREAD):
            return None

    def load(self, name: str, run: str, layout: Layout) -> tuple[Checkpoint, str] | None:
        """Return the latest checkpoint of a run without its state, and the state's digest; None before its first round.

        Raises:
            KeyFileError: if the file is damaged or of another model.
        """
        path = self.path(name, run)
        if not path.exists():
            return None
        try:
            with open_file(path) as file:
                header = json.loads(read_header(file))
                note = json.loads(header.pop("__metadata__")[_NOTE])
                file.seek(sum(each.values.size for each in _before(layout)), os.SEEK_CUR)
                vector = np.fromfile(file, dtype="<f4", count=layout.size)
            bound, average, averaged = float(note["update_bound"]), str(note["average"]), int(note["averaged"])
            checkpoint = Checkpoint(run, int(note["round"]), Model(vector, layout), bound, average, averaged)
            digest, said, state = note["model"], note["run"], str(note["state"])
        except MISREAD as error:
            msg = f"{path}: this checkpoint is damaged ({error}); move it aside and restart the agent"
            raise KeyFileError(msg) from error
        whole = header == describe(layout) and vector.size == layout.size
        if not whole or said != run or checkpoint.model.digest != digest:
            msg = f"{path}: this checkpoint was altered, or is of another run; move it aside and restart the agent"
            raise KeyFileError(msg)
        return checkpoint, state

    def keep(self, name: str, run: str, other: CheckpointStore) -> None:
        """Keep a run's model in another store too; there is none before its first round, and none is left there."""
        path, kept = self.path(name, run), other.path(name, run)
        if path.exists():
            link_atomically(path, kept)
        else:
            kept.unlink(missing_ok=True)

    def save(self, name: str, checkpoint: Checkpoint) -> Path:
        """Replace a run's model, so that a crash leaves the old or the new one."""
        path = self.path(name, checkpoint.run)
        note = {
            "run": checkpoint.run,
            "round": checkpoint.round,
            "model": checkpoint.model.digest,
            "update_bound": checkpoint.update_bound,
            "average": checkpoint.average,
            "averaged": checkpoint.averaged,
            "state": checkpoint.state.digest,
        }
        layout = checkpoint.model.layout
        data = json.dumps({"__metadata__": {_NOTE: json.dumps(note)}, **describe(layout)}).encode()
        data += b" " * (-len(data) % 8)
        values = np.ascontiguousarray(checkpoint.model.vector, dtype="<f4")
        before, after = ([each.values.data for each in part] for part in (_before(layout), _after(layout)))
        write_atomically(path, len(data).to_bytes(8, "little"), data, *before, values.data, *after)
        return path


def read_header(file: BinaryIO) -> bytes:
    """Return a safetensors file's header, from its beginning on, as the bytes that say JSON."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(min(length, os.fstat(file.fileno()).st_size))  # what it says may be damaged


def describe(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return what a file's header says of the tensors."""
    header: dict[str, dict[str, Any]] = {}
    start = 0
    trained = [(name, "F32", shape, 4 * math.prod(shape)) for name, shape in layout.shapes]
    before, after = (
        [(each.name, each.dtype, each.shape, each.values.size) for each in part]
        for part in (_before(layout), _after(layout))
    )
    for name, dtype, shape, size in (*before, *trained, *after):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start := start + size]}
    return header


def _before(layout: Layout) -> list[Constant]:
    """Return the constants that lie before the trained values: larger numbers come first, so that each is aligned."""
    return [each for each in layout.constants if each.saved and _width(each) > _FLOAT]


def _after(layout: Layout) -> list[Constant]:
    return sorted(
        (each for each in layout.constants if each.saved and _width(each) <= _FLOAT), key=_width, reverse=True
    )


def _width(constant: Constant) -> int:
    """Return how many bytes a number takes."""
    return WIDTHS[constant.dtype]
