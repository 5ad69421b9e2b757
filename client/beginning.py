"""A model that a run starts from: a safetensors file that every site has already, named by its SHA-256 in the manifest.

It may be an earlier run's, which lies in `models/`, or a public one that was put into `models/public/`. It is found by
what it holds, whatever it is called, and nothing is fetched. Only numbers are read of it: a safetensors file is a
header in JSON and values; no pickle, no code.
"""

from __future__ import annotations

import json
import math
import operator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from hashlib import file_digest
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from client.checkpoint import MISREAD, describe, read_header
from privacy.errors import RefusedError
from privacy.update import Constant, Model, is_finite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.update import Layout


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
                with path.open("rb") as file:
                    return _read(file, layout, digest)
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


def _read(file: BinaryIO, layout: Layout, digest: str) -> Model:
    """Return the model, in whatever order its tensors lie in the file."""
    vector, done, constants = np.empty(layout.size, np.float32), 0, list[Constant]()
    try:
        header = json.loads(read_header(file))
        header.pop("__metadata__", None)
        places, first = _places(header, layout), file.tell()
        for name, shape in layout.shapes:
            start, end = places[name]
            file.seek(first + start)
            count = math.prod(shape)
            vector[done : done + count] = _take(file, "<f4", count)
            done += count
        for each in layout.constants:
            if not each.saved:
                constants.append(each)
                continue
            start, end = places[each.name]
            file.seek(first + start)
            constants.append(Constant.of(each.name, each.dtype, each.shape, _take(file, "u1", end - start)))
    except _Misfit as error:
        msg = (
            f"the model with SHA-256 {digest} has other tensors than this run's task: {error}; name another in [start]"
        )
        raise RefusedError(msg) from error
    except MISREAD as error:
        msg = f"the file with SHA-256 {digest} is no whole safetensors file; name another in [start]"
        raise RefusedError(msg) from error
    if not is_finite(vector):
        msg = f"the model with SHA-256 {digest} holds values that are not finite; name another in [start]"
        raise RefusedError(msg)
    return Model(vector, replace(layout, constants=tuple(constants)))


def _take(file: BinaryIO, dtype: str, count: int) -> NDArray[Any]:
    found = np.fromfile(file, dtype=dtype, count=count)
    if found.size != count:
        msg = "the file ends early"
        raise ValueError(msg)
    return found


class _Misfit(Exception):  # noqa: N818 - becomes a refusal
    """Says which tensor is missing, of another form, or too much."""


def _places(header: dict[str, Any], layout: Layout) -> dict[str, tuple[int, int]]:
    """Return where each tensor begins and ends among the file's bytes of values."""
    places, wanted = {}, describe(layout)
    if strange := set(header) ^ set(wanted):
        raise _Misfit(min(strange))
    for name, form in wanted.items():
        tensor = header[name]
        if (tensor["dtype"], tensor["shape"]) != (form["dtype"], form["shape"]):
            raise _Misfit(name)
        start, end = map(operator.index, tensor["data_offsets"])
        first, last = form["data_offsets"]
        if not 0 <= start == end - (last - first):
            raise ValueError(name)
        places[name] = start, end
    return places
