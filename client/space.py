"""Room on a site's disks for all that a round writes, taken before it is charged and given back when it is written.

A file in every folder that is written to takes up the place: so a disk that is full, cannot be written, or is filled up
by others while a site trains costs nobody anything.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from client.sums import FOLDER as STATISTICS
from privacy.ciphertext import CIPHERTEXT_BYTES
from privacy.errors import StorageError
from privacy.failures import sentence
from privacy.storage import set_aside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from privacy.manifest import Manifest
    from privacy.update import Layout
    from strategies.algorithm import Algorithm

_NAME = ".space"
_SMALL = 1 << 14  # bytes: a header, a report, some lines of a ledger


def needs(folder: Path, ledger: Path, manifest: Manifest, layout: Layout, algorithm: Algorithm) -> dict[Path, int]:
    """Return how many bytes a round writes into each folder of a site, beside what lies there."""
    settings = manifest.settings
    update = manifest.packing.ciphertexts(layout.size) * CIPHERTEXT_BYTES
    model = 4 * layout.size
    if settings.training:
        update += 0 if settings.shares_noise else model  # what rounding left over
        update += model if settings.training.averaging else 0  # the last model, beside the mean
        update += model if settings.vote else 0  # the one before, where a second name for its file is not enough
        update += 2 * model * (len(algorithm.state) + len(algorithm.own))  # in double precision
    found = {folder / "outbox": update + _SMALL, folder / "models": model + _SMALL, ledger: _SMALL}
    return found if settings.training else found | {folder / STATISTICS: _SMALL}


@contextmanager
def space_for(needed: dict[Path, int]) -> Iterator[None]:
    """Take up so many bytes in each folder, for as long as the context lasts.

    Raises:
        StorageError: if one of them does not have them.
    """
    try:
        for folder, size in needed.items():
            try:
                set_aside(folder / _NAME, size)
            except OSError as error:
                msg = f"{folder}: a round needs {size} bytes there, and they cannot be written: {sentence(error)}"
                raise StorageError(msg) from error
        yield
    finally:
        for folder in needed:
            with suppress(OSError):
                (folder / _NAME).unlink(missing_ok=True)
