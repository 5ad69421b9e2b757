"""The letters of all epochs, as the server keeps them: sealed to one site each, and opaque to everyone else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from privacy.storage import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_NAME = re.compile(r"(\d{6,})-roster-(\d+)-(.+)_to_(.+)\.letter")  # no site's name has underscores


class Letters:
    """A folder of letters, named by epoch, leader and recipient."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def latest(self) -> int:
        """Number of the newest epoch; 0 before the first."""
        return max((epoch for epoch, *_ in self._all()), default=0)

    def keep(self, epoch: int, roster: int, leader: str, letters: Mapping[str, bytes]) -> None:
        """Store a new epoch's letters before any is delivered."""
        for site, letter in letters.items():
            write_atomically(self._folder / f"{epoch:06d}-roster-{roster}-{leader}_to_{site}.letter", letter)

    def after(self, epoch: int, roster: int, site: str) -> list[tuple[str, bytes]]:
        """Return leader and letter of every later epoch of this roster, oldest first, that was sealed to a site."""
        return [
            (leader, path.read_bytes())
            for each, version, leader, to, path in self._all()
            if each > epoch and version == roster and to == site
        ]

    def _all(self) -> Iterator[tuple[int, int, str, str, Path]]:
        found = [(name, path) for path in self._folder.glob("*.letter") if (name := _NAME.fullmatch(path.name))]
        for name, path in sorted(found, key=lambda each: (int(each[0][1]), each[1])):
            yield int(name[1]), int(name[2]), name[3], name[4], path
