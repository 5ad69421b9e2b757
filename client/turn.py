"""The lock that an agent holds while it runs, so that there is one per site, and nobody else changes its files."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from privacy.errors import VaultError
from privacy.locks import locked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TURN = ".agent"
"""The lock's file in a site's folder."""


@contextmanager
def without_agent(folder: Path) -> Iterator[None]:
    """Keep agents of a site from running.

    Raises:
        VaultError: if one is running.
    """
    with (folder / TURN).open("ab") as file:
        if not locked(file):
            msg = f"{folder}: an agent of this site is running; stop it, and run this again"
            raise VaultError(msg)
        yield
