"""Store the letters of all key epochs at the server: each is sealed to one site and opaque to everyone else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_NAME = re.compile(r"(\d{6,})-roster-(\d+)-(.+)_to_(.+)\.letter")  # site names have no underscores


class SealedKeys:
    """A folder of letters, named by epoch, leader and recipient."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[tuple[int, int, str, Path]]] = {}  # by recipient
        self.latest = 0  # number of the newest epoch; 0 before the first
        for path in folder.glob("*.letter"):
            if name := _NAME.fullmatch(path.name):
                self._enter(int(name[1]), int(name[2]), name[3], name[4], path)

    def keep(self, epoch: int, roster: int, leader: str, letters: Mapping[str, bytes]) -> None:
        """Store a new epoch's letters before any is delivered."""
        for site, letter in letters.items():
            path = self._folder / f"{epoch:06d}-roster-{roster}-{leader}_to_{site}.letter"
            write_atomically(path, letter)
            self._enter(epoch, roster, leader, site, path)

    def after(self, epoch: int, roster: int, site: str) -> list[tuple[str, bytes]]:
        """Return leader and letter of this roster's later epochs, as sealed to a site, oldest first."""
        return [
            (leader, read_file(path))
            for number, version, leader, path in sorted(self._files.get(site, ()))
            if number > epoch and version == roster
        ]

    def keep_pairs(self, keys: str, sender: str, letters: Mapping[str, bytes]) -> None:
        """Store one site's letters with mask secrets for others, under the keys with this fingerprint."""
        note = {"keys": keys, "letters": {site: letter.hex() for site, letter in letters.items()}}
        write_atomically(self._folder / f"{sender}.pairs", json.dumps(note).encode())

    def pairs_to(self, keys: str, site: str, senders: Iterable[str]) -> dict[str, bytes]:
        """Return these senders' letters to a site under the keys with this fingerprint."""
        letters = {sender: self._pairs(keys, sender).get(site) for sender in senders}
        return {sender: bytes.fromhex(letter) for sender, letter in letters.items() if letter}

    def _pairs(self, keys: str, sender: str) -> dict[str, str]:
        try:
            note = json.loads(read_file(self._folder / f"{sender}.pairs"))
        except (OSError, ValueError):  # lost or damaged: the server asks for it again
            return {}
        letters: dict[str, str] = note["letters"] if note.get("keys") == keys else {}
        return letters

    def _enter(self, epoch: int, roster: int, leader: str, site: str, path: Path) -> None:
        self._files.setdefault(site, []).append((epoch, roster, leader, path))
        self.latest = max(self.latest, epoch)
