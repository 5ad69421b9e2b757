"""The keys of all epochs that one site has received, so that it can still open sums that it missed."""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.crypto.key_epoch import EpochKeys
from privacy.errors import KeyFileError, ProtocolError
from privacy.run.plan import LARGEST_STEP
from privacy.storage import make_folder, read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_PARTS = ("secrets", "letters")
_NAME = re.compile(r"(\d{6,})-roster-(\d+)\.key")


@dataclass(frozen=True)
class _Pairs:
    """The secrets that a site shares with others under one epoch's keys, and the letters for them."""

    secrets: dict[str, bytes]
    letters: dict[str, bytes]


class Keyring:
    """A folder of keys, one file per epoch. Epochs only advance: older ones are refused."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, EpochKeys] = {}  # by file name; such a file never changes

    @property
    def _held(self) -> dict[int, tuple[int, EpochKeys]]:
        """Roster version and keys by epoch, read from disk each time, since other processes of this site write too."""
        held = {}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if (name := _NAME.fullmatch(path.name)) is not None:
                if path.name not in self._read:
                    self._read[path.name] = _read_keys(path, int(name[1]))
                held[int(name[1])] = int(name[2]), self._read[path.name]
        return held

    @property
    def latest(self) -> int:
        """The number of the newest epoch whose keys this site has; 0 before the first."""
        return max(self._held, default=0)

    def current(self, roster: int) -> EpochKeys | None:
        """Return the newest epoch's keys, if they were made for this version of the roster."""
        held = self._held
        version, keys = held.get(max(held, default=0), (0, None))
        return keys if version == roster else None

    def find(self, fingerprint: str) -> EpochKeys:
        """Return the keys with this fingerprint.

        Raises:
            ProtocolError: if this site never received them.
        """
        for _, keys in self._held.values():
            if keys.fingerprint == fingerprint:
                return keys
        msg = f"this site does not have the keys {fingerprint[:12]}; it gets them when the server asks again"
        raise ProtocolError(msg)

    def roster_of(self, fingerprint: str) -> int | None:
        """Return the version of the roster for which the keys with this fingerprint were made; None if unknown here."""
        return next((version for version, keys in self._held.values() if keys.fingerprint == fingerprint), None)

    def shared_with(self, fingerprint: str, cohort: Iterable[str], site: str) -> dict[str, bytes]:
        """Return the secrets that this site shares with the others of a cohort, under the keys with this fingerprint.

        Raises:
            ProtocolError: if it shares none with one of them.
        """
        keys, others = self.find(fingerprint), [other for other in cohort if other != site]
        secrets = self._pairs(keys).secrets
        if missing := [other for other in others if other not in secrets]:
            msg = (
                f"{site} shares no secret for masks with {', '.join(missing)} under the keys of key epoch {keys.epoch}"
            )
            raise ProtocolError(msg)
        return {other: secrets[other] for other in others}

    def paired_with(self, keys: EpochKeys | None) -> list[str]:
        """Return the sites with which this site shares a secret under an epoch's keys."""
        return sorted(self._pairs(keys).secrets) if keys else []

    def own_letters(self, keys: EpochKeys) -> dict[str, bytes]:
        """Return the letters with the secrets that this site made for others under an epoch's keys."""
        return self._pairs(keys).letters

    def keep_pairs(
        self, keys: EpochKeys, secrets: Mapping[str, bytes], letters: Mapping[str, bytes] | None = None
    ) -> None:
        """Keep secrets shared with others, and the letters for them, durably. None is ever replaced."""
        make_folder(self._folder)
        with _alone(self._folder):  # if two processes of the site make secrets, the first one's are kept
            held = self._pairs(keys)
            held = _Pairs(dict(secrets) | held.secrets, dict(letters or {}) | held.letters)
            note = {
                "secrets": {site: secret.hex() for site, secret in held.secrets.items()},
                "letters": {site: letter.hex() for site, letter in held.letters.items()},
            }
            write_atomically(self._pairs_path(keys), json.dumps(note).encode())

    def _pairs(self, keys: EpochKeys) -> _Pairs:
        path = self._pairs_path(keys)
        try:
            note = json.loads(read_file(path))
            parts = ({site: bytes.fromhex(value) for site, value in note[name].items()} for name in _PARTS)
            return _Pairs(*parts)
        except FileNotFoundError:
            return _Pairs({}, {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"{path}: this file is damaged; restore it from the site's backup, or have the sites make new keys"
            raise KeyFileError(msg) from error

    def _pairs_path(self, keys: EpochKeys) -> Path:
        return self._folder / f"{keys.epoch:06d}-{keys.fingerprint[:16]}.pairs"

    def take(self, keys: EpochKeys, roster: int) -> None:
        """Keep the keys of a newer epoch, durably.

        Raises:
            ProtocolError: if the epoch is not newer than this site's newest, or far too new.
        """
        held = self._held
        latest = max(held, default=0)
        if keys.epoch in held and held[keys.epoch][1].fingerprint == keys.fingerprint:
            return
        if keys.epoch <= latest:
            msg = f"the keys of key epoch {keys.epoch} are refused: this site already has those of key epoch {latest}"
            raise ProtocolError(msg)
        if keys.epoch > latest + LARGEST_STEP:
            msg = f"the keys of key epoch {keys.epoch} are refused: it is too far from this site's key epoch {latest}"
            raise ProtocolError(msg)
        path = self._folder / f"{keys.epoch:06d}-roster-{roster}.key"
        write_atomically(path, keys.to_bytes())
        self._read[path.name] = keys


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that use this lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_keys(path: Path, epoch: int) -> EpochKeys:
    try:
        keys = EpochKeys.from_bytes(read_file(path))
    except KeyFileError as error:
        msg = f"{path}: {error}"
        raise KeyFileError(msg) from error
    if keys.epoch != epoch:
        msg = f"{path}: these are the keys of key epoch {keys.epoch}; restore the file from the site's backup"
        raise KeyFileError(msg)
    return keys
