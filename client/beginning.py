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
from functools import lru_cache
from hashlib import file_digest
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from client.checkpoint import MISREAD, read_header
from privacy.errors import RefusedError
from privacy.update import Model, is_finite

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.update import Layout


def find_model(folder: Path, digest: str, layout: Layout, site: str) -> Model:
    """Return the model in the file with this SHA-256, in hex, anywhere below a folder.

    Raises:
        RefusedError: if there is none, it is no safetensors file, or the model is not of this layout.
    """
    for path in sorted(folder.rglob("*.safetensors")):
        with suppress(OSError):  # a link that leads nowhere, or somebody else's: it may still be in another file
            state = path.stat()
            if S_ISREG(state.st_mode) and _digest(path, state.st_mtime_ns, state.st_size) == digest:
                with path.open("rb") as file:
                    return Model(_read(file, layout, digest), layout)
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


def _read(file: BinaryIO, layout: Layout, digest: str) -> NDArray[np.float32]:
    """Return the tensors in the order of the layout, in whatever order they lie in the file: `(size,)`."""
    vector, done = np.empty(layout.size, np.float32), 0
    try:
        header = json.loads(read_header(file))
        header.pop("__metadata__", None)
        places, first = _places(header, layout), file.tell()
        for start, count in places:
            file.seek(first + start)
            vector[done : done + count] = np.fromfile(file, dtype="<f4", count=count)
            done += count
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
    return vector


class _Misfit(Exception):  # noqa: N818 - becomes a refusal
    """Says which tensor is missing, of another form, or too much."""


def _places(header: dict[str, Any], layout: Layout) -> list[tuple[int, int]]:
    """Return where each tensor begins among the file's bytes of values, and how many values it has."""
    places, wanted = [], dict(layout.shapes)
    if strange := set(header) ^ set(wanted):
        raise _Misfit(min(strange))
    for name, shape in wanted.items():
        tensor, count = header[name], math.prod(shape)
        if (tensor["dtype"], tensor["shape"]) != ("F32", list(shape)):
            raise _Misfit(name)
        start, end = map(operator.index, tensor["data_offsets"])
        if not 0 <= start == end - 4 * count:
            raise ValueError(name)
        places.append((start, count))
    return places
