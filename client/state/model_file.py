"""A model's file: safetensors, which is a length, a header in JSON padded to 8 bytes, and the values.

The library reads it, and hands out nothing before it knows that header, shapes and length agree. It is written here,
since the library cannot replace a file as a whole, keep it from other accounts, or say in an `OSError` that a disk is
full. Neither holds the model twice. A file holds numbers only: no pickle, no code.

Beside what is trained the file has the model's constants, as `state_dict` does, for whoever uses the model.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from client.state.model_state import WIDTHS, bytes_of
from privacy.codec.update import Constant
from privacy.storage import open_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.codec.update import Layout, Model

_FLOAT = 4  # bytes


@contextmanager
def open_model(path: Path) -> Iterator[safe_open]:
    """Open a model's file to be read.

    Raises:
        OSError: if it cannot be read, or is no file.
        SafetensorError: if it is no whole safetensors file.
    """
    open_file(path).close()  # of a pipe, the library would wait for the other end
    # Not by a map of memory: there, a file that somebody cuts off meanwhile ends this process.
    with safe_open(path, "pt", backend="pread") as file:
        yield file


def misfit(file: safe_open, layout: Layout) -> str:
    """Return the name of a tensor that is missing, of another type or shape, or too much; nothing if there is none."""
    wanted = {name: (form["dtype"], form["shape"]) for name, form in _describe(layout).items()}
    if strange := set(file.keys()) ^ set(wanted):
        return min(strange)
    for name, form in wanted.items():
        found = file.get_slice(name)
        if (found.get_dtype(), found.get_shape()) != form:
            return name
    return ""


def read_vector(file: safe_open, layout: Layout) -> NDArray[np.float32]:
    """Return what is trained, `(size,)`, from a file that has no misfit."""
    vector, done = np.empty(layout.size, np.float32), 0
    for name, shape in layout.shapes:
        count = math.prod(shape)
        vector[done : done + count] = file.get_tensor(name).numpy().reshape(-1)
        done += count
    return vector


def read_constants(file: safe_open, layout: Layout) -> Layout:
    """Return a layout with the constants of a file that has no misfit; those that are not saved stay as they are."""
    constants = (
        Constant.of(each.name, each.dtype, each.shape, bytes_of(file.get_tensor(each.name))) if each.saved else each
        for each in layout.constants
    )
    return replace(layout, constants=tuple(constants))


def write_model(path: Path, model: Model, notes: Mapping[str, str]) -> None:
    """Replace a model's file, so that a crash leaves the old or the new one.

    Raises:
        OSError: naming `path`, if it cannot be written.
    """
    header = json.dumps({"__metadata__": dict(notes), **_describe(model.layout)}).encode()
    header += b" " * (-len(header) % 8)
    values = np.ascontiguousarray(model.vector, dtype="<f4")
    before, after = ([each.values.data for each in part] for part in _constants_around(model.layout))
    write_atomically(path, len(header).to_bytes(8, "little"), header, *before, values.data, *after)


def _describe(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return what a file's header says of the tensors."""
    header: dict[str, dict[str, Any]] = {}
    start = 0
    trained = [(name, "F32", shape, _FLOAT * math.prod(shape)) for name, shape in layout.shapes]
    before, after = (
        [(each.name, each.dtype, each.shape, each.values.size) for each in part] for part in _constants_around(layout)
    )
    for name, dtype, shape, size in (*before, *trained, *after):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start := start + size]}
    return header


def _constants_around(layout: Layout) -> tuple[list[Constant], list[Constant]]:
    """Return the saved constants before what is trained and after it: larger numbers first, so that each is aligned."""
    saved = sorted((each for each in layout.constants if each.saved), key=_width, reverse=True)
    return [each for each in saved if _width(each) > _FLOAT], [each for each in saved if _width(each) <= _FLOAT]


def _width(constant: Constant) -> int:
    """Return how many bytes a number takes."""
    return WIDTHS[constant.dtype]
