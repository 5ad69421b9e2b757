"""Reserve disk space for everything that a round writes before it is charged, and release it afterwards.

A file in each folder takes up the space. So a disk that is full, read-only, or filled by others while a site trains
costs no privacy.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from privacy.codec.ciphertext import CIPHERTEXT_BYTES
from privacy.errors import StorageError
from privacy.failures import sentence
from privacy.storage import set_aside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.round.admission import AdmittedRun
    from privacy.codec.update import Layout

_NAME = ".space"
_SMALL = 1 << 14  # bytes: a header, a report, some lines of a ledger


def needs(admitted: AdmittedRun, layout: Layout) -> dict[Path, int]:
    """Return how many additional bytes a round writes into each folder of a site."""
    folder = admitted.site.place.folder
    update = admitted.manifest.packing.ciphertexts(layout.size) * CIPHERTEXT_BYTES
    sizes = {folder / "outbox": update, folder / "models": 4 * layout.size, admitted.ledger.path.parent: 0}
    for place, size in admitted.work.files(admitted.settings, layout).items():
        sizes[place] = sizes.get(place, 0) + size
    kept = len(admitted.algorithm.state) + len(admitted.algorithm.own)
    sizes[folder / "outbox"] += 8 * layout.size * kept  # in double precision
    return {place: size + _SMALL for place, size in sizes.items()}


@contextmanager
def space_for(needed: dict[Path, int]) -> Iterator[None]:
    """Take up the needed bytes in each folder while the context lasts.

    Raises:
        StorageError: if a folder has no room for them.
    """
    try:
        for folder, size in needed.items():
            try:
                set_aside(folder / _NAME, size)
            except OSError as error:
                msg = f"{folder}: a round needs {size} bytes in this folder, which cannot be written: {sentence(error)}"
                raise StorageError(msg) from error
        yield
    finally:
        for folder in needed:
            with suppress(OSError):
                (folder / _NAME).unlink(missing_ok=True)
