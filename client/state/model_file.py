"""Read and write a model's safetensors file: a length, a JSON header padded to 8 bytes, and the values.

The library reads the file, and returns nothing before it has checked that header, shapes and length agree. This module
writes it, since the library cannot replace a file atomically, keep it from other accounts, or raise an `OSError` when a
disk is full. Neither holds the model in memory twice. A file holds numbers only: no pickle, no code.

A run's model is a file of its trained parameters alone, however large the frozen part is; the file names that part by
its digest. A file may also hold the frozen part alone, or both.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from client.state.model_parts import WIDTHS, bytes_of
from client.state.sealed_model import SealedModel
from privacy.at_rest.vaults import vault_of
from privacy.codec.update import Constant, Layout
from privacy.storage import open_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from privacy.codec.update import Model

_FLOAT = 4  # bytes

ModelFile = safe_open | SealedModel


@contextmanager
def open_model(path: Path) -> Iterator[ModelFile]:
    """Open a model's file for reading.

    Raises:
        OSError: if it cannot be read, or is no regular file.
        SafetensorError: if it is not a complete safetensors file.
        VaultError: if it is encrypted and cannot be opened.
    """
    if vault_of(path):
        with open_file(path) as encrypted:
            yield SealedModel(encrypted)
        return
    open_file(path).close()  # on a pipe, the library would wait for the other end
    # No memory map: if somebody truncated the file meanwhile, it would end this process.
    with safe_open(path, "pt", backend="pread") as file:
        yield file


def parts_of(file: ModelFile, layout: Layout) -> Layout:
    """Return the parts of a layout of which a file has tensors: what is trained, the constants, or both."""
    names = set(file.keys())
    shapes = layout.shapes if names & {name for name, _ in layout.shapes} else ()
    constants = layout.constants if names & {constant.name for constant in layout.constants if constant.saved} else ()
    return Layout(shapes, constants) if shapes or constants else layout


def misfit(file: ModelFile, layout: Layout) -> str:
    """Return the name of a tensor that is missing, unexpected, or of another type or shape; "" if there is none."""
    wanted = {name: (form["dtype"], form["shape"]) for name, form in _describe(layout).items()}
    if strange := set(file.keys()) ^ set(wanted):
        return min(strange)
    for name, form in wanted.items():
        tensor = file.get_slice(name)
        if (tensor.get_dtype(), tensor.get_shape()) != form:
            return name
    return ""


def read_vector(file: ModelFile, layout: Layout) -> NDArray[np.float32]:
    """Return the trained parameters, `(size,)`, from a file without a misfit."""
    vector, done = np.empty(layout.size, np.float32), 0
    for name, shape in layout.shapes:
        count = math.prod(shape)
        vector[done : done + count] = file.get_tensor(name).numpy().reshape(-1)
        done += count
    return vector


def read_constants(file: ModelFile, layout: Layout) -> Layout:
    """Return the layout with the constants of a file without a misfit; constants that are not saved do not change."""
    constants = (
        Constant.of(constant.name, constant.dtype, constant.shape, bytes_of(file.get_tensor(constant.name)))
        if constant.saved
        else constant
        for constant in layout.constants
    )
    return replace(layout, constants=tuple(constants))


def write_model(path: Path, model: Model, notes: Mapping[str, str]) -> None:
    """Replace the file of a model's trained parameters atomically: a crash leaves the old or the new one.

    Raises:
        OSError: if it cannot be written; names `path`.
    """
    _write(path, model.vector, Layout(model.layout.shapes), notes)


def write_constants(path: Path, layout: Layout) -> None:
    """Replace the file of a layout's constants atomically.

    Raises:
        OSError: if it cannot be written; names `path`.
    """
    _write(path, np.empty(0, np.float32), Layout((), layout.constants), {})


def _write(path: Path, vector: NDArray[np.float32], layout: Layout, notes: Mapping[str, str]) -> None:
    header = json.dumps({**({"__metadata__": dict(notes)} if notes else {}), **_describe(layout)}).encode()
    header += b" " * (-len(header) % 8)
    values = np.ascontiguousarray(vector, dtype="<f4")
    before, after = ([constant.values.data for constant in part] for part in _constants_around(layout))
    write_atomically(path, len(header).to_bytes(8, "little"), header, *before, values.data, *after)


def _describe(layout: Layout) -> dict[str, dict[str, Any]]:
    """Return the tensors' entries in a file's header."""
    header: dict[str, dict[str, Any]] = {}
    start = 0
    trained = [(name, "F32", shape, _FLOAT * math.prod(shape)) for name, shape in layout.shapes]
    before, after = (
        [(constant.name, constant.dtype, constant.shape, constant.values.size) for constant in part]
        for part in _constants_around(layout)
    )
    for name, dtype, shape, size in (*before, *trained, *after):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start := start + size]}
    return header


def _constants_around(layout: Layout) -> tuple[list[Constant], list[Constant]]:
    """Return the saved constants before and after the trained parameters: wider types first, to align each tensor."""
    saved = sorted((constant for constant in layout.constants if constant.saved), key=_width, reverse=True)
    return [constant for constant in saved if _width(constant) > _FLOAT], [
        constant for constant in saved if _width(constant) <= _FLOAT
    ]


def _width(constant: Constant) -> int:
    """Return the number of bytes per value."""
    return WIDTHS[constant.dtype]
