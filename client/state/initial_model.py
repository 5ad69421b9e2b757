"""Find the model from which a run starts: a safetensors file at every site, named by its SHA-256 in the manifest.

It may be an earlier run's, in `models/`, or a public one, put into `models/public/`. It is found by its contents,
whatever its name; nothing is downloaded. The file has

    what is trained   an earlier run's model. Its frozen part is the task's, or in the file from which that run started
    the frozen part   a public backbone: what is trained starts as the task makes it
    both              a whole model
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import file_digest
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple

from safetensors import SafetensorError

from client.state.checkpoint import NOTE
from client.state.model_file import misfit, open_model, parts_of, read_constants, read_vector
from client.state.personal_models import NOT_PRIVATE
from privacy.codec.update import Model, is_finite
from privacy.errors import RefusedError, VaultError
from privacy.storage import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from client.state.model_file import ModelFile


_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")


class _Note(NamedTuple):
    """What a run's model says about itself; a public file says nothing."""

    run: str = ""
    frozen: str = ""  # digest of the constants over which it was trained
    source: str = ""  # SHA-256 of the file in which these are; "" if the task makes them


def find_model(folder: Path, digest: str, untrained: Model, site: str) -> Model:
    """Return the model in the file with this SHA-256, in hex, anywhere below a folder.

    Args:
        folder: the folder to search.
        digest: SHA-256 of the file, in hex.
        untrained: the task's untrained model, for what the file lacks.
        site: this site's name.

    Raises:
        RefusedError: if there is none, it is no safetensors file, its values are not all finite, the model has another
            layout, or it was trained over another frozen part.
    """
    model, note = _read(_find(folder, digest, site), untrained, digest)
    if note.source and note.source != digest:
        frozen, _ = _read(_find(folder, note.source, site), untrained, note.source)
        model = replace(model, layout=frozen.layout)
    if note.frozen and note.frozen != model.layout.frozen:
        msg = (
            f"the model with SHA-256 {digest} was trained over another frozen part than this task has; name another "
            "model in [start], or the model_seed with which that run began"
        )
        raise RefusedError(msg)
    return replace(model, run=note.run)


def files_of(folder: Path, digest: str) -> list[Path]:
    """Return the file with this SHA-256, in hex, anywhere below a folder, and that of the frozen part under its model.

    Returns:
        None of those that are not there.

    Raises:
        RefusedError: if it is not a complete safetensors file.
    """
    if (path := _look_for(folder, digest)) is None:
        return []
    try:
        with open_model(path) as file:
            source = _note(file).source
    except SafetensorError as error:
        raise _incomplete(digest) from error
    frozen = _look_for(folder, source) if source and source != digest else None
    return [path, frozen] if frozen else [path]


def _look_for(folder: Path, digest: str) -> Path | None:
    for path in sorted(folder.rglob("*.safetensors")):
        with suppress(OSError, VaultError):  # a dead link, or an unreadable file; another file may still match
            state = path.stat()
            if S_ISREG(state.st_mode) and _digest(path, state.st_mtime_ns, state.st_size) == digest:
                return path
    return None


def _find(folder: Path, digest: str, site: str) -> Path:
    if path := _look_for(folder, digest):
        return path
    msg = (
        f"{site} does not have the initial model, the safetensors file with SHA-256 {digest}; put it into the site's "
        "folder models/public"
    )
    raise RefusedError(msg)


@lru_cache(maxsize=1024)
def _digest(path: Path, changed: int, size: int) -> str:
    del changed, size  # part of the cache's key
    with open_file(path) as file:
        return file_digest(file, "sha256").hexdigest()


def _read(path: Path, untrained: Model, digest: str) -> tuple[Model, _Note]:
    """Return the model, whatever the order of its tensors in the file, and what the file says about it."""
    try:
        with open_model(path) as file:
            if NOT_PRIVATE in (file.metadata() or {}).values():
                msg = (
                    f"the file with SHA-256 {digest} is a site's personal model, trained without privacy, which stays "
                    "at that site; name another model in [start]"
                )
                raise RefusedError(msg)
            held = parts_of(file, untrained.layout)
            if name := misfit(file, held):
                msg = (
                    f"the model with SHA-256 {digest} does not have the tensors of this run's task: {name}; name "
                    "another model "
                )
                raise RefusedError(msg + "in [start]")
            vector = read_vector(file, held) if held.shapes else untrained.vector
            layout = untrained.layout
            if held.constants:
                layout = replace(read_constants(file, layout), source=digest)
            model, note = Model(vector, layout), _note(file)
    except SafetensorError as error:
        raise _incomplete(digest) from error
    if not is_finite(model.vector):
        msg = f"the model with SHA-256 {digest} contains values that are not finite; name another in [start]"
        raise RefusedError(msg)
    return model, note


def _incomplete(digest: str) -> RefusedError:
    return RefusedError(f"the file with SHA-256 {digest} is not a complete safetensors file; name another in [start]")


def _note(file: ModelFile) -> _Note:
    try:
        note = json.loads((file.metadata() or {})[NOTE])
        parsed = _Note(str(note["run"]), str(note.get("frozen", "")), str(note.get("source", "")))
        return parsed if all(_DIGEST.fullmatch(digest) for digest in parsed) else _Note()
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return _Note()
