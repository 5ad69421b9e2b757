"""Back up a site into one file, and restore it: `cloister backup SITE FILE`, `cloister restore FILE SITE`.

    "cloister-backup-1", a line feed; the length of the header (8 bytes); the header, JSON; the files, one after another

The header names each file with its length and digest. It has what the site keeps and `site.toml`: not the records, not
`models/public/`. Files of an encrypted folder go into the backup as they are, encrypted, with `vault.json`; an HMAC under
the vault's data key covers the header, so that no file of another backup can take the place of one.

A restored site never forgets what it spent. If the folder's own ledger continues the backup's, it stays. If the site's
last head says that the backup's ledger lacks entries, and the folder has no sound ledger, nothing is restored, unless
what is missing is charged (`privacy.ledger.recovery`).
"""

from __future__ import annotations

import hmac
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from client.settings import read_site
from client.turn import without_agent
from privacy.at_rest.held import FILES, FOLDERS, holds, is_log
from privacy.at_rest.vault import FILE as VAULT
from privacy.at_rest.vaults import header_of, is_protected, opened
from privacy.errors import BackupError, LedgerError
from privacy.failures import reason
from privacy.files import make_folder, private, replace_file, sync_folder
from privacy.log_file import read_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from client.settings import SiteFolder
    from privacy.ledger.ledger import Ledger

_MAGIC = b"cloister-backup-1\n"
_SETTINGS = "site.toml"
_LENGTH = 8
_LARGEST_HEADER = 1 << 26
_STEP = 1 << 20


@dataclass(frozen=True)
class Held:
    """A file in a backup."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Backup:
    """The header of a backup."""

    site: str
    time: str
    files: tuple[Held, ...]
    mac: str = ""  # in hex; empty if the folder was not encrypted

    def to_bytes(self) -> bytes:
        """Encode."""
        values = {"site": self.site, "time": self.time, "mac": self.mac}
        return json.dumps({**values, "files": [[each.name, each.size, each.digest] for each in self.files]}).encode()

    @classmethod
    def read(cls, file: BinaryIO, path: Path) -> Backup:
        """Read the header of a file that is open at its start.

        Raises:
            BackupError: naming the file, if it is no backup, or damaged.
        """
        if file.read(len(_MAGIC)) != _MAGIC:
            msg = f"{path}: this is no backup that this version of Cloister can read; name a file of cloister backup"
            raise BackupError(msg)
        try:
            length = int.from_bytes(file.read(_LENGTH), "big")
            values: dict[str, Any] = json.loads(file.read(min(length, _LARGEST_HEADER)))
            files = tuple(Held(str(name), int(size), str(digest)) for name, size, digest in values["files"])
            header = cls(str(values["site"]), str(values["time"]), files, str(values["mac"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _damaged(path) from error
        if not all(_is_safe(each.name) and each.size >= 0 for each in files):
            raise _damaged(path)
        return header

    def of_vault(self, data_key: bytes) -> str:
        """Return the HMAC of the rest under a vault's data key."""
        key = sha256(b"cloister backup" + data_key).digest()
        return hmac.new(key, Backup(self.site, self.time, self.files).to_bytes(), sha256).hexdigest()


def back_up(place: SiteFolder, path: Path) -> Backup:
    """Write a site's backup.

    Raises:
        VaultError: if an agent is running, or an encrypted folder cannot be opened.
        OSError: naming the file, if it cannot be written; then no file is left.
    """
    folder = place.folder
    with without_agent(folder):
        _check_ledgers(place)
        held = tuple(_described(folder, name) for name in _names(folder))
        header = Backup(place.settings.site, datetime.now(UTC).isoformat(timespec="seconds"), held)
        if is_protected(folder):
            header = Backup(header.site, header.time, held, header.of_vault(opened(folder).data_key))
        replace_file(path, _parts(folder, header))
    return header


def _check_ledgers(place: SiteFolder) -> None:
    for ledger in (place.ledger, place.held_out_ledger):
        ledger.entries()


def _names(folder: Path) -> list[str]:
    further = header_of(folder).files if is_protected(folder) else ()
    found = [folder / _SETTINGS, *([folder / VAULT] if is_protected(folder) else [])]
    for name in sorted({*FOLDERS, *FILES, *further}):
        path = folder / name
        found += sorted(path.rglob("*")) if path.is_dir() else [path]
    names = [each.relative_to(folder).as_posix() for each in found if each.is_file()]
    return [name for name in names if not name.endswith(".new") and not name.startswith("models/public/")]


def _described(folder: Path, name: str) -> Held:
    with open(folder / name, "rb", opener=private) as file:
        digest = file_digest(file, "sha256").hexdigest()
        return Held(name, file.tell(), digest)


def _parts(folder: Path, header: Backup) -> Iterator[bytes]:
    data = header.to_bytes()
    yield _MAGIC + len(data).to_bytes(_LENGTH, "big") + data
    for each in header.files:
        with open(folder / each.name, "rb", opener=private) as file:
            while piece := file.read(_STEP):
                yield piece


@dataclass(frozen=True)
class Restored:
    """What a restore did."""

    header: Backup
    place: SiteFolder
    kept: tuple[str, ...]  # files of the folder that continue the backup's, and stayed


def restore(path: Path, folder: Path, *, older: bool = False) -> Restored:
    """Restore a site from a backup into a new folder, or into the one from which it came.

    Args:
        path: the backup.
        folder: the site's folder.
        older: whether to restore a ledger that lacks entries; the caller charges them.

    Raises:
        BackupError: if the backup is damaged, of another site, or would roll a ledger back; nothing was changed.
        CloisterError: if the encrypted backup cannot be opened, or has no sound ledger; nothing was changed.
    """
    beside = folder.absolute().with_name(f".{folder.absolute().name}.restoring")
    if beside.exists():  # left by a process that was killed
        rmtree(beside)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with without_agent(folder):
            header = _unpack(path, beside)
            place = read_site(beside)
            _check_own(path, header, beside)
            _check_ledgers(place)
            kept = _continued(place, read_site(folder), older=older) if (folder / _SETTINGS).exists() else ()
            for each in header.files:
                if each.name not in kept:
                    make_folder((folder / each.name).parent)
                    (beside / each.name).replace(folder / each.name)
            for parent in {(folder / each.name).parent for each in header.files}:
                sync_folder(parent)
    finally:
        rmtree(beside, ignore_errors=True)
    return Restored(header, read_site(folder), kept)


def _unpack(path: Path, folder: Path) -> Backup:
    """Unpack a backup into a new folder; check every file's length and digest."""
    try:
        with open(path, "rb", opener=private) as file:
            header = Backup.read(file, path)
            for each in header.files:
                (folder / each.name).parent.mkdir(parents=True, exist_ok=True)
                digest = sha256()
                replace_file(folder / each.name, _pieces(file, each.size, digest))
                if digest.hexdigest() != each.digest:
                    raise _damaged(path)
            if file.read(1):
                raise _damaged(path)
    except FileNotFoundError as error:
        msg = f"{path}: {reason(error)}; name a file of cloister backup"
        raise BackupError(msg) from error
    return header


def _pieces(file: BinaryIO, size: int, digest: Any) -> Iterator[bytes]:  # noqa: ANN401 - hashlib's type has no name
    while size > 0 and (piece := file.read(min(size, _STEP))):
        digest.update(piece)
        size -= len(piece)
        yield piece


def _check_own(path: Path, header: Backup, folder: Path) -> None:
    """Check that an encrypted backup is whole, and that a folder that is in use has the same data key.

    Raises:
        BackupError: if it is not.
    """
    good = hmac.compare_digest(header.mac, header.of_vault(opened(folder).data_key)) if is_protected(folder) else True
    if not good or is_protected(folder) != bool(header.mac):
        raise _damaged(path)


def _continued(place: SiteFolder, present: SiteFolder, *, older: bool) -> tuple[str, ...]:
    """Return the files of the present folder that continue the backup's.

    Raises:
        BackupError: if the folder is another site's or has another data key, or a ledger would be rolled back.
    """
    folder = present.folder
    if present.settings.site != place.settings.site:
        msg = f"{folder} belongs to {present.settings.site}, this backup to {place.settings.site}; name another folder"
        raise BackupError(msg)
    keys = [header_of(each.folder).id if is_protected(each.folder) else "" for each in (present, place)]
    if keys[0] != keys[1]:
        msg = f"{folder} is not encrypted as this backup is; restore into a new folder, and copy the records there"
        raise BackupError(msg)
    kept = [name for name in _names(folder) if is_log(name) and _continues(folder / name, place.folder / name)]
    for ledger, own in ((place.ledger, present.ledger), (place.held_out_ledger, present.held_out_ledger)):
        name = own.path.relative_to(folder).as_posix()
        if name in kept and _is_sound(own):
            kept.append(f"ledger-heads/{own.lineage}")
        elif not older:
            _check_newest(ledger, own)
    return tuple(kept)


def _continues(present: Path, before: Path) -> bool:
    return before.exists() and read_log(present).startswith(read_log(before))


def _is_sound(ledger: Ledger) -> bool:
    try:
        ledger.entries()
    except LedgerError:
        return False
    return True


def _check_newest(ledger: Ledger, own: Ledger) -> None:
    """Check that a backup's ledger has the last head of the folder that it is to replace.

    Raises:
        BackupError: if it lacks entries.
    """
    head = own.last_kept()
    if head and head not in ledger.entries().heads:
        msg = (
            f"{own.path}: this backup lacks later charges of {own.site} (head {head[:12]}), and the folder's own "
            "ledger is lost or damaged; restore a newer backup; if there is none, see `cloister restore --help`"
        )
        raise BackupError(msg)


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    usual = name in {_SETTINGS, VAULT} or holds(name) or len(path.parts) > 1
    return usual and not path.is_absolute() and ".." not in path.parts and "\0" not in name and name == str(path)


def _damaged(path: Path) -> BackupError:
    return BackupError(f"{path}: this backup is damaged or was altered; use another one")


__all__ = ["Backup", "Restored", "back_up", "restore"]
