"""Back up a site into one file: `cloister backup SITE FILE`. See `client.restoring` for the way back.

    "cloister-backup-1", a line feed; the length of the header (8 bytes); the header, JSON; the files, one after another

The header names each file with its length and digest. It has what the site keeps and `site.toml`: not the records, not
`models/public/`. Files of an encrypted folder go into the backup as they are, encrypted, with `vault.json`. An HMAC
under the vault's data key covers the header, so that no file of another backup can take the place of one.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from client.protection import kept
from client.turn import without_agent
from privacy.at_rest.held import FILES, FOLDERS, MADE_AGAIN
from privacy.at_rest.protection import finish
from privacy.at_rest.vault import FILE as VAULT
from privacy.at_rest.vaults import is_protected, opened
from privacy.clock import date
from privacy.errors import BackupError
from privacy.files import private, replace_file, unfinished

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from client.settings import SiteFolder

_MAGIC = b"cloister-backup-1\n"
SETTINGS = "site.toml"
STEP = 1 << 20  # bytes copied at a time
_LENGTH = 8
_LARGEST_HEADER = 1 << 26


@dataclass(frozen=True)
class FileEntry:
    """A file in a backup."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Backup:
    """The header of a backup."""

    site: str
    time: str
    files: tuple[FileEntry, ...]
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
            files = tuple(FileEntry(str(name), int(size), str(digest)) for name, size, digest in values["files"])
            header = cls(str(values["site"]), str(values["time"]), files, str(values["mac"]))
            for each in files:
                os.fsencode(each.name)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise damaged(path) from error
        if not all(_is_safe(each.name) and each.size >= 0 for each in files):
            raise damaged(path)
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
        if is_protected(folder):
            finish(folder)  # so that nothing in the clear gets into it
        check_ledgers(place)
        held = tuple(_described(folder, name) for name in names_of(folder, kept(place).files))
        header = Backup(place.settings.site, date(), held)
        if is_protected(folder):
            header = Backup(header.site, header.time, held, header.of_vault(opened(folder).data_key))
        for left in unfinished(path):  # by a process that was killed
            left.unlink()
        replace_file(path, _parts(folder, header))
    return header


def check_ledgers(place: SiteFolder) -> None:
    """Check that a site's ledgers can be read, and lack nothing that its own heads show.

    Raises:
        LedgerError: if not.
    """
    for ledger in (place.ledger, place.held_out_ledger):
        ledger.entries()


def names_of(folder: Path, further: tuple[str, ...] = ()) -> list[str]:
    """Return the files that a backup holds, relative to the site's folder; `further`: keys elsewhere in it."""
    found = [folder / SETTINGS, *([folder / VAULT] if is_protected(folder) else [])]
    for name in sorted({*FOLDERS, *FILES, *further} - MADE_AGAIN):
        path = folder / name
        found += sorted(path.rglob("*")) if path.is_dir() else [path]
    names = [each.relative_to(folder).as_posix() for each in found if each.is_file()]
    return [name for name in names if not name.endswith(".new") and not name.startswith("models/public/")]


def _described(folder: Path, name: str) -> FileEntry:
    with open(folder / name, "rb", opener=private) as file:
        digest = file_digest(file, "sha256").hexdigest()
        return FileEntry(name, file.tell(), digest)


def _parts(folder: Path, header: Backup) -> Iterator[bytes]:
    data = header.to_bytes()
    yield _MAGIC + len(data).to_bytes(_LENGTH, "big") + data
    for each in header.files:
        yield from content_of(folder / each.name)


def content_of(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes as they are, encrypted or not."""
    with open(path, "rb", opener=private) as file:
        while piece := file.read(STEP):
            yield piece


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    visible = not name.startswith(".")  # a restore keeps its own state in files that are not
    return visible and not path.is_absolute() and ".." not in path.parts and "\0" not in name and name == str(path)


def damaged(path: Path) -> BackupError:
    """Return the error for a backup that does not have its form."""
    return BackupError(f"{path}: this backup is damaged or was altered; use another one")
