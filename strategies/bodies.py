"""Keep the updates of one masked plan until its sum has been opened, in case members must judge them.

Ciphertexts go to an unnamed temporary file that disappears with this process: memory holds one update at a time.
"""

from __future__ import annotations

from dataclasses import replace
from os import SEEK_END
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING

from transport.memory import trim

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.codec.envelope import SignedUpdate

_IN_MEMORY = 32 << 20  # bytes; the rest goes to disk


class Bodies:
    """Signed updates by site."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: SpooledTemporaryFile[bytes] | None = None
        self._kept: dict[str, tuple[SignedUpdate, int, list[int]]] = {}

    def keep(self, site: str, update: SignedUpdate) -> None:
        """Keep a site's update."""
        if self._file is None:
            self._file = SpooledTemporaryFile(_IN_MEMORY, dir=str(self._folder))  # noqa: SIM115 - see `clear`
        place = self._file.seek(0, SEEK_END)
        for chunk in update.chunks:
            self._file.write(chunk)
        self._kept[site] = replace(update, chunks=()), place, [len(chunk) for chunk in update.chunks]

    @property
    def sites(self) -> frozenset[str]:
        """The sites whose updates are kept."""
        return frozenset(self._kept)

    def find(self, site: str) -> SignedUpdate:
        """Return a site's update, which must have been kept."""
        update, place, sizes = self._kept[site]
        assert self._file is not None  # noqa: S101 - something was kept
        self._file.seek(place)
        return replace(update, chunks=tuple(self._file.read(size) for size in sizes))

    def clear(self) -> None:
        """Forget all updates, and return what a round's messages took of memory."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._kept.clear()
        trim()
