"""A model that a run starts from: a safetensors file that every site has already, named by its SHA-256 in the manifest.

It may be an earlier run's, which lies in `models/`, or a public one that was put into `models/public/`. It is found by
what it holds, whatever it is called, and nothing is fetched.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from hashlib import file_digest
from stat import S_ISREG
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from client.state.model_file import misfit, open_model, read_constants, read_vector
from privacy.codec.update import Model, is_finite
from privacy.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.codec.update import Layout


def find_model(folder: Path, digest: str, layout: Layout, site: str) -> Model:
    """Return the model in the file with this SHA-256, in hex, anywhere below a folder.

    Args:
        folder: where to look.
        digest: of the file.
        layout: the task's own. Constants that are saved in a model's file are then those of this file.
        site: this one's name.

    Raises:
        RefusedError: if there is none, it is no safetensors file, or the model is not of this layout.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with suppress(OSError):  # a link that leads nowhere, or somebody else's: it may still be in another file
            state = path.stat()
            if S_ISREG(state.st_mode) and _digest(path, state.st_mtime_ns, state.st_size) == digest:
                return _read(path, layout, digest)
    msg = (
        f"{site} does not have the model to start from, the safetensors file with SHA-256 {digest}; "
        "put it into the site's models/public/"
    )
    raise RefusedError(msg)


@lru_cache(maxsize=1024)
def _digest(path: Path, changed: int, size: int) -> str:
    del changed, size  # of another state, another digest
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _read(path: Path, layout: Layout, digest: str) -> Model:
    """Return the model, in whatever order its tensors lie in the file."""
    try:
        with open_model(path) as file:
            if name := misfit(file, layout):
                msg = f"the model with SHA-256 {digest} has other tensors than this run's task: {name}; name another "
                raise RefusedError(msg + "in [start]")
            model = Model(read_vector(file, layout), read_constants(file, layout))
    except SafetensorError as error:
        msg = f"the file with SHA-256 {digest} is no whole safetensors file; name another in [start]"
        raise RefusedError(msg) from error
    if not is_finite(model.vector):
        msg = f"the model with SHA-256 {digest} holds values that are not finite; name another in [start]"
        raise RefusedError(msg)
    return model
