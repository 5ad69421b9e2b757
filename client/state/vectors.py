"""Read and write the named float64 vectors that a site keeps with a run's model, all in one safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.numpy import load, save

from privacy.errors import KeyFileError
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from strategies.algorithm import Values


def save_vectors(path: Path, vectors: Mapping[str, Values]) -> None:
    """Replace a file's vectors atomically: a crash leaves the old or the new ones."""
    write_atomically(path, save(dict(vectors)))


def load_vectors(path: Path, names: Sequence[str], size: int) -> dict[str, Values]:
    """Return the vectors `(size,)` with these names, in this order.

    Raises:
        KeyFileError: if the file is damaged, or holds other vectors.
    """
    try:
        vectors = load(read_file(path))
    except (SafetensorError, KeyError, ValueError, OverflowError) as error:
        msg = f"{path}: this file is damaged ({type(error).__name__}); restore it from the site's backup"
        raise KeyFileError(msg) from error
    if vectors.keys() != set(names) or any(
        (vector.shape, vector.dtype.str) != ((size,), "<f8") for vector in vectors.values()
    ):
        msg = f"{path}: this file belongs to another run; restore this run's file from the site's backup"
        raise KeyFileError(msg)
    return {name: vectors[name] for name in names}
