"""The models that a site trains for itself (`[personal]`): one safetensors file per run, in `personal/`.

They are trained without noise, so they are not private: nothing that leaves the site may depend on them. Each file says
so in its metadata, and `client.state.initial_model` refuses to start a run from one. A file has all trained parameters,
shared and local, and notes the shared model after which it was trained. It is replaced as a whole: after a crash,
training starts again at the previous one.

Beside it lies the run's signed manifest while there is a model still to be trained, so that an agent that was stopped
meanwhile goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy.errors import KeyFileError
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.codec.update import Shapes

    Values = Mapping[str, NDArray[np.float32]]

FOLDER = "personal"
"""The folder in a site's folder."""

NOT_PRIVATE = "not private: trained without noise, stays at this site"
"""In each file's metadata, under `privacy`."""

_NOTE = "cloister"
_DUE = "manifest"


@dataclass(frozen=True)
class After:
    """When a personal model was trained: by which method, and after which round's shared model."""

    method: str
    round: int
    model: str  # digest of the site's checkpoint


class PersonalModels:
    """A folder with one model per run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, run: str) -> Path:
        """Return where a run's personal model lies."""
        return self._folder / f"{run[:16]}.safetensors"

    def load(self, run: str, shapes: Shapes) -> tuple[dict[str, NDArray[np.float32]], After] | None:
        """Return a run's personal model by name, and when it was trained; None if there is none.

        Args:
            run: digest of its manifest.
            shapes: of all trained parameters.

        Raises:
            KeyFileError: if the file is damaged, or has other parameters.
        """
        path = self.path(run)
        if not path.exists():
            return None
        data = read_file(path)
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            note = json.loads(header["__metadata__"][_NOTE])
            after = After(str(note["method"]), int(note["round"]), str(note["model"]))
        except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            msg = f"{path}: this file is damaged ({type(error).__name__}); move it aside to start the model again"
            raise KeyFileError(msg) from error
        forms = {name: (values.shape, values.dtype) for name, values in tensors.items()}
        if forms != {name: (shape, np.dtype("<f4")) for name, shape in shapes}:
            msg = f"{path}: this file does not have the parameters of the run's task; move it aside to start it again"
            raise KeyFileError(msg)
        return tensors, after

    def save(self, run: str, values: Values, after: After) -> Path:
        """Replace a run's personal model."""
        note = {"run": run, "method": after.method, "round": after.round, "model": after.model}
        tensors = {name: np.ascontiguousarray(array) for name, array in values.items()}
        data = save(tensors, {"privacy": NOT_PRIVATE, _NOTE: json.dumps(note)})
        write_atomically(self.path(run), data)
        return self.path(run)

    def note_due(self, run: str, document: bytes) -> None:
        """Keep a run's signed manifest until its personal model is trained."""
        write_atomically(self._due(run), document)

    def settle(self, run: str) -> None:
        """Note that a run's personal model is trained for now."""
        self._due(run).unlink(missing_ok=True)

    def due(self) -> Iterator[bytes]:
        """Return the signed manifests of runs whose personal models are still to be trained."""
        for path in sorted(self._folder.glob(f"*.{_DUE}")):
            yield read_file(path)

    def _due(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.{_DUE}"
