"""Find the model from which a run starts: a safetensors file at every site, named by its SHA-256 in the manifest.

It may be an earlier run's, in `models/`, or a public one, put into `models/public/`. It is found by its contents,
whatever its name; nothing is downloaded.
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
        folder: the folder to search.
        digest: SHA-256 of the file, in hex.
        layout: the task's layout; saved constants are read from the file.
        site: this site's name.

    Raises:
        RefusedError: if there is none, it is no safetensors file, its values are not all finite, or the model has
            another layout.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with suppress(OSError):  # a dead link or unreadable file; another file may still match
            state = path.stat()
            if S_ISREG(state.st_mode) and _digest(path, state.st_mtime_ns, state.st_size) == digest:
                return _read(path, layout, digest)
    msg = (
        f"{site} does not have the initial model, the safetensors file with SHA-256 {digest}; put it into the site's "
        "folder models/public"
    )
    raise RefusedError(msg)


@lru_cache(maxsize=1024)
def _digest(path: Path, changed: int, size: int) -> str:
    del changed, size  # part of the cache's key
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _read(path: Path, layout: Layout, digest: str) -> Model:
    """Return the model, whatever the order of its tensors in the file."""
    try:
        with open_model(path) as file:
            if name := misfit(file, layout):
                msg = (
                    f"the model with SHA-256 {digest} does not have the tensors of this run's task: {name}; name "
                    "another model "
                )
                raise RefusedError(msg + "in [start]")
            model = Model(read_vector(file, layout), read_constants(file, layout))
    except SafetensorError as error:
        msg = f"the file with SHA-256 {digest} is not a complete safetensors file; name another in [start]"
        raise RefusedError(msg) from error
    if not is_finite(model.vector):
        msg = f"the model with SHA-256 {digest} contains values that are not finite; name another in [start]"
        raise RefusedError(msg)
    return model
