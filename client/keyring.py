"""The epochs' keys at one site: every one it was brought, so that it can still open sums that it missed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from privacy.epoch import EpochKeys
from privacy.errors import KeyFileError, ProtocolError
from privacy.plan import LARGEST_STEP
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"(\d{6,})-roster-(\d+)\.key")


class Keyring:
    """A folder of keys, one file an epoch. An epoch never goes back: older ones are refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, EpochKeys] = {}  # by the file's name; a file of this name never changes

    @property
    def _held(self) -> dict[int, tuple[int, EpochKeys]]:
        """Roster version and keys by epoch: what is on disk now, since other processes of this site write there too."""
        held = {}
        for path in self._folder.glob("*.key"):
            if (name := _NAME.fullmatch(path.name)) is not None:
                if path.name not in self._read:
                    self._read[path.name] = _read_keys(path, int(name[1]))
                held[int(name[1])] = int(name[2]), self._read[path.name]
        return held

    @property
    def latest(self) -> int:
        """Number of the newest epoch that this site has keys of; 0 before the first."""
        return max(self._held, default=0)

    def current(self, roster: int) -> EpochKeys | None:
        """Return the newest epoch's keys, if they were made for this version of the roster."""
        version, keys = self._held.get(self.latest, (0, None))
        return keys if version == roster else None

    def find(self, fingerprint: str) -> EpochKeys:
        """Return the keys with this fingerprint.

        Raises:
            ProtocolError: if this site was never brought them.
        """
        for _, keys in self._held.values():
            if keys.fingerprint == fingerprint:
                return keys
        msg = f"this site does not have the keys {fingerprint[:12]}; it gets them when the server asks again"
        raise ProtocolError(msg)

    def take(self, keys: EpochKeys, roster: int) -> None:
        """Keep the keys of a newer epoch, durably.

        Raises:
            ProtocolError: if the epoch is not newer than the newest that this site has, or far too new.
        """
        held = self._held
        if keys.epoch in held and held[keys.epoch][1].fingerprint == keys.fingerprint:
            return
        if keys.epoch <= self.latest:
            msg = f"keys of epoch {keys.epoch} are refused: this site has those of epoch {self.latest} already"
            raise ProtocolError(msg)
        if keys.epoch > self.latest + LARGEST_STEP:
            msg = f"keys of epoch {keys.epoch} are refused: that is too far from this site's epoch {self.latest}"
            raise ProtocolError(msg)
        path = self._folder / f"{keys.epoch:06d}-roster-{roster}.key"
        write_atomically(path, keys.to_bytes())
        self._read[path.name] = keys


def _read_keys(path: Path, epoch: int) -> EpochKeys:
    try:
        keys = EpochKeys.from_bytes(path.read_bytes())
    except KeyFileError as error:
        msg = f"{path}: {error}"
        raise KeyFileError(msg) from error
    if keys.epoch != epoch:
        msg = f"{path}: these are the keys of epoch {keys.epoch}; restore the file from the site's backup"
        raise KeyFileError(msg)
    return keys
