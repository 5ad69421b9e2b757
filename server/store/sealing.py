"""Encrypt the store's values, each by itself, if the server's folder is encrypted: `privacy.at_rest.sealed_value`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.at_rest.sealed_value import open_value, seal_value

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Sealing:
    """Seals values for the folder of a server. A value opens at its own place only: table, key and column."""

    folder: Path

    def seal(self, table: str, key: tuple[str | int, ...], data: bytes | memoryview, column: str = "value") -> bytes:
        """Return a value as it is stored."""
        return seal_value(self.folder, _place(table, key, column), data) if data else b""

    def open(self, table: str, key: tuple[str | int, ...], stored: bytes, column: str = "value") -> bytes:
        """Return a value, given as it is stored.

        Raises:
            VaultError: if it was altered, or belongs elsewhere.
        """
        return open_value(self.folder, _place(table, key, column), stored) if stored else b""


def _place(table: str, key: tuple[str | int, ...], column: str) -> str:
    return "/".join(("store", table, *map(str, key), column))
