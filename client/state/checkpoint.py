"""A run's model at one site: one file per run (`client.state.model_file`), replaced as a whole after every round.

The file is the same, bit for bit, at every site that has opened the same sums. It has only what is trained and shared,
and names the frozen part by its digest: a site has that from its task, or from the run's initial model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from client.state.model_file import misfit, open_model, read_vector, write_model
from privacy.codec.update import Layout, Model
from privacy.errors import KeyFileError
from privacy.storage import link_atomically
from strategies.advance import State

if TYPE_CHECKING:
    from pathlib import Path

NOTE = "cloister"
"""The key of a checkpoint's note in its file's metadata."""
_MISREAD = SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError


@dataclass(frozen=True)
class Checkpoint:
    """A run's model after a round. Round 0 is the model from which the run starts."""

    run: str
    round: int
    model: Model
    update_bound: float  # the codec's range for the next round's updates
    average: str = ""  # digest of the mean kept with this model, if any; in a mean, digest of the mean before it
    averaged: int = 0  # in a mean: the number of rounds averaged
    state: State = field(default_factory=State)  # the algorithm's state; empty in a mean

    @cached_property
    def digest(self) -> str:
        """The digest on which all sites must agree: of the model, and of the mean and state if there are any."""
        digest = self.model.digest
        if self.average:
            digest = sha256(b"cloister average" + bytes.fromhex(digest + self.average)).hexdigest()
        if self.state.digest:
            digest = sha256(b"cloister checkpoint" + bytes.fromhex(digest + self.state.digest)).hexdigest()
        return digest


class CheckpointStore:
    """The checkpoints of one site, kept on disk only, since a model may take much of the memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str, run: str) -> Path:
        """Return the path of a run's model."""
        return self._folder / f"{name}-{run[:8]}.safetensors"

    def peek(self, name: str, run: str) -> tuple[int, str, str, str] | None:
        """Return the round and the digests of model, mean and state that a run's file claims; None if there is none."""
        try:
            with open_model(self.path(name, run)) as file:
                note = json.loads(file.metadata()[NOTE])
            return int(note["round"]), str(note["model"]), str(note["average"]), str(note["state"])
        except (OSError, *_MISREAD):
            return None

    def load(self, name: str, run: str, layout: Layout) -> tuple[Checkpoint, str] | None:
        """Return a run's latest checkpoint without its state, and the state's digest; None before its first round.

        Raises:
            KeyFileError: if the file is damaged or of another model.
        """
        path = self.path(name, run)
        if not path.exists():
            return None
        try:
            with open_model(path) as file:
                note = json.loads(file.metadata()[NOTE])
                trained = Layout(layout.shapes)
                model = None if misfit(file, trained) else Model(read_vector(file, layout), layout)
            number, bound, averaged = int(note["round"]), float(note["update_bound"]), int(note["averaged"])
            average, state = str(note["average"]), str(note["state"])
            digest, noted_run = note["model"], note["run"]
        except _MISREAD as error:
            msg = f"{path}: this checkpoint is damaged ({error}); move it aside and restart the agent"
            raise KeyFileError(msg) from error
        if model is None or noted_run != run or model.digest != digest:
            msg = f"{path}: this checkpoint was altered, or belongs to another run; move it aside and restart the agent"
            raise KeyFileError(msg)
        return Checkpoint(run, number, model, bound, average, averaged), state

    def keep(self, name: str, run: str, store: CheckpointStore) -> None:
        """Keep a run's model in another store too; before the run's first round, remove it there."""
        path, kept = self.path(name, run), store.path(name, run)
        if path.exists():
            link_atomically(path, kept)
        else:
            kept.unlink(missing_ok=True)

    def save(self, name: str, checkpoint: Checkpoint) -> Path:
        """Replace a run's model atomically: a crash leaves the old or the new one."""
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
        if layout.constants:
            note |= {"frozen": layout.frozen, "source": layout.source}
        write_model(path, checkpoint.model, {NOTE: json.dumps(note)})
        return path
