"""Back up a site into one file, and restore it: `cloister backup SITE FILE`, `cloister restore FILE SITE`.

    "cloister-backup-1", a line feed; the length of the header (8 bytes); the header, JSON; the files, one after another

The header names each file with its length and digest. It has what the site keeps and `site.toml`: not the records, not
`models/public/`. Files of an encrypted folder go into the backup as they are, encrypted, with `vault.json`. An HMAC
under the vault's data key covers the header, so that no file of another backup can take the place of one.

A restored site never forgets what it spent. If the folder's own ledger continues the backup's, it stays. If the site's
last head says that the backup's ledger lacks entries, and the folder has no sound ledger, nothing is restored, unless
the caller asks for it and then charges what is missing (`privacy.ledger.recovery`).
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import file_digest, sha256
from pathlib import Path, PurePosixPath
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from client.settings import read_site
from client.turn import without_agent
from privacy.at_rest.held import FILES, FOLDERS, MADE_AGAIN, holds, is_log
from privacy.at_rest.vault import FILE as VAULT
from privacy.at_rest.vault import Vault
from privacy.at_rest.vaults import forget, header_of, is_protected, opened, remember
from privacy.errors import BackupError, LedgerError, VaultError
from privacy.failures import reason
from privacy.files import make_folder, private, replace_file, sync_folder
from privacy.ledger.ledger_head import SignedHead
from privacy.log_file import read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from client.settings import SiteFolder
    from privacy.ledger.ledger import Ledger

    Charge = Callable[[SiteFolder, list[SignedHead]], None]

_MAGIC = b"cloister-backup-1\n"
_SETTINGS = "site.toml"
_KEPT_HEADS = "ledger", "ledger-heads"
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
    for name in sorted({*FOLDERS, *FILES, *further} - MADE_AGAIN):
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


def restore(path: Path, folder: Path, charge: Charge | None = None) -> Restored:
    """Restore a site from a backup into a new folder, or into the one from which it came.

    Args:
        path: the backup.
        folder: the site's folder.
        charge: charges what the backup's ledgers lack, given the site as it is unpacked and the heads that the folder
            has; without it, a backup that lacks entries is refused.

    Raises:
        BackupError: if the backup is damaged, of another site, or would roll a ledger back; nothing was changed.
        CloisterError: if the encrypted backup cannot be opened, or has no sound ledger; nothing was changed.
    """
    beside = folder.absolute().with_name(f".{folder.absolute().name}.restoring")
    folder.mkdir(parents=True, exist_ok=True)
    with without_agent(folder):  # and without another call of this
        if beside.exists():  # left by a process that was killed
            rmtree(beside)
        try:
            header, kept = _restore(path, folder, beside, charge)
        finally:
            forget(beside)
            rmtree(beside, ignore_errors=True)
    return Restored(header, read_site(folder), kept)


def _restore(path: Path, folder: Path, beside: Path, charge: Charge | None) -> tuple[Backup, tuple[str, ...]]:
    header = _unpack(path, beside)
    place = read_site(beside)
    _check_own(path, header, beside, folder)
    _check_ledgers(place)
    kept: tuple[str, ...] = ()
    heads = list[SignedHead]()
    if (folder / _SETTINGS).exists() or any((folder / name).exists() for name in _KEPT_HEADS):
        kept, heads = _continued(place, folder, older=charge is not None)
    if (folder / _SETTINGS).exists():
        kept = (*kept, _SETTINGS)  # the policy may have become stricter since
    if charge:
        charge(place, heads)
    for name in _names(beside):  # with what was charged
        if name not in kept:
            make_folder((folder / name).parent)
            (beside / name).replace(folder / name)
            sync_folder((folder / name).parent)
    return header, kept


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


def _check_own(path: Path, header: Backup, unpacked: Path, folder: Path) -> None:
    """Check that an encrypted backup is whole; open the folder with the same data key, if it is the same vault.

    Raises:
        BackupError: if it is not whole.
    """
    if not is_protected(unpacked):
        if header.mac:
            raise _damaged(path)
        return
    vault = opened(unpacked)
    if not hmac.compare_digest(header.mac, header.of_vault(vault.data_key)):
        raise _damaged(path)
    if is_protected(folder) and header_of(folder).id == vault.header.id:
        remember(Vault(folder, header_of(folder), vault.data_key).checked())


def _continued(place: SiteFolder, folder: Path, *, older: bool) -> tuple[tuple[str, ...], list[SignedHead]]:
    """Return the files of the present folder that continue the backup's, and the heads that it has.

    Raises:
        BackupError: if the folder is another site's or has another data key, a ledger would be rolled back, or an older
            one is asked for and none lacks anything.
    """
    if (folder / _SETTINGS).exists() and (site := read_site(folder).settings.site) != place.settings.site:
        msg = f"{folder} belongs to {site}, this backup to {place.settings.site}; name another folder"
        raise BackupError(msg)
    keys = [header_of(each).id if is_protected(each) else "" for each in (folder, place.folder)]
    if keys[0] != keys[1]:
        msg = f"{folder} is not encrypted as this backup is; restore into a new folder, and copy the records there"
        raise BackupError(msg)
    heads, kept = (
        list[SignedHead](),
        {name for name in _names(folder) if is_log(name) and _continues(folder / name, place.folder / name)},
    )
    current = {place.ledger.lineage, place.held_out_ledger.lineage}
    lost = False
    for ledger in _ledgers(place, folder):
        own = ledger.at(folder / "ledger" / ledger.lineage, folder / "ledger-heads" / ledger.lineage)
        names = {f"ledger/{ledger.lineage}", f"ledger-heads/{ledger.lineage}"}
        if _continues_ledger(own, ledger):
            kept |= names
            continue
        kept -= names
        known = _known_heads(own)
        heads += known
        lost |= ledger.lineage in current
        if (not older or ledger.lineage not in current) and (
            missing := {head.head for head in known} - ledger.unchecked().entries().heads
        ):
            advice = (
                "; if there is none, see --charge-missing in `cloister restore --help`"
                if ledger.lineage in current
                else ""
            )
            msg = (
                f"{own.path}: this backup lacks later charges of {own.site} (head {min(missing)[:12]}), and the "
                f"folder's own ledger does not continue it; restore a newer backup{advice}"
            )
            raise BackupError(msg)
    if older and not lost:
        msg = (
            f"{folder}: its own ledgers continue this backup's and stay, so nothing is charged; restore without "
            "--charge-missing; if the server shows later charges, see `cloister ledger recover --help`"
        )
        raise BackupError(msg)
    return tuple(sorted(kept)), heads


def _ledgers(place: SiteFolder, folder: Path) -> list[Ledger]:
    """Return the ledgers of all lineages that a backup or the present folder has, as they are in the backup."""
    lineages = {
        path.name
        for above in (place.folder, folder)
        for name in _KEPT_HEADS
        for path in (above / name).glob("*")
        if not path.name.startswith(".") and path.is_file()
    }
    own = {ledger.lineage: ledger for ledger in (place.ledger, place.held_out_ledger)}
    return [*own.values(), *(place.ledger_of(lineage) for lineage in sorted(lineages - own.keys()))]


def _continues(present: Path, before: Path) -> bool:
    """Return whether a file of entries has all those of another, and perhaps more."""
    try:
        return before.exists() and read_log(present).startswith(read_log(before))
    except VaultError:
        return False


def _continues_ledger(own: Ledger, backup: Ledger) -> bool:
    """Return whether a folder's own ledger is sound, and has all entries of a backup's."""
    try:
        return own.path.exists() and backup.unchecked().entries().head in own.entries().heads
    except (LedgerError, VaultError):  # damaged, or older than its own last head
        return False


def _known_heads(own: Ledger) -> list[SignedHead]:
    """Return the heads that a folder shows for its ledger, also those that it signed with a later key."""
    return [head for head in (own.last_of_any_key(), own.head_of_any_key()) if head]


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    usual = name in {_SETTINGS, VAULT} or holds(name) or len(path.parts) > 1
    return usual and not path.is_absolute() and ".." not in path.parts and "\0" not in name and name == str(path)


def _damaged(path: Path) -> BackupError:
    return BackupError(f"{path}: this backup is damaged or was altered; use another one")


__all__ = ["Backup", "Restored", "back_up", "restore"]
