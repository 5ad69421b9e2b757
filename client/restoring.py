"""Restore a site from its backup: `cloister restore FILE SITE`.

A restored site never forgets what it spent. If the folder's own ledger continues the backup's, it stays. If the site's
last head says that the backup's ledger lacks entries, and the folder has no sound ledger, nothing is restored, unless
the caller asks for it and then charges what is missing (`privacy.ledger.recovery`).

The backup is unpacked, checked and charged in `.restoring`, in the site's folder, which may be a disk of its own. Then
that folder is renamed to `.restored`: from then on, the restore is done, and the next call puts the files in their
places if this one is killed. Until they are, no command opens the site.
"""

from __future__ import annotations

import errno
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from client.backup import SETTINGS, STEP, Backup, check_ledgers, content_of, damaged, names_of
from client.settings import read_site
from client.turn import TURN, without_agent
from privacy.at_rest.held import RESTORED, RESTORING, is_log
from privacy.at_rest.protection import finish
from privacy.at_rest.vault import Vault
from privacy.at_rest.vaults import forget, header_of, is_protected, opened, remember
from privacy.config import settings_file
from privacy.errors import BackupError, CloisterError, LedgerError, VaultError
from privacy.failures import reason
from privacy.files import make_folder, private, replace_file, sync_folder
from privacy.ledger.ledger_head import SignedHead
from privacy.log_file import read_log
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from client.settings import SiteFolder
    from privacy.ledger.ledger import Ledger

    Charge = Callable[[SiteFolder, list[SignedHead]], None]

_KEPT_HEADS = "ledger", "ledger-heads"
_DIGEST = ".backup"  # in the unpacked backup: the digest of its header


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
        ConfigError: if the folder is reached through a link.
        CloisterError: if the encrypted backup cannot be opened, or has no sound ledger; nothing was changed.
    """
    settings_file(folder / SETTINGS, SETTINGS)  # which refuses what `read_site` would refuse in the end
    new, beside = not folder.exists(), folder / RESTORING
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with without_agent(folder):  # and without another call of this
            if (folder / RESTORED).exists() and _finished(path, folder):
                return Restored(_header(path), read_site(folder), ())
            rmtree(beside, ignore_errors=True)  # left by a process that was killed
            try:
                header, kept = _prepare(path, folder, beside, charge)
            finally:
                forget(beside)
                rmtree(beside, ignore_errors=True)
            _put_in_place(folder)
    except (CloisterError, OSError):
        if new and not (folder / RESTORED).exists():
            _leave(folder)
        raise
    return Restored(header, read_site(folder), kept)


def _leave(folder: Path) -> None:
    (folder / TURN).unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def _finished(path: Path, folder: Path) -> bool:
    """Finish a restore that was interrupted; return whether it was from this backup."""
    digest = read_file(folder / RESTORED / _DIGEST)
    _put_in_place(folder)
    return digest == _digest(_header(path))


def _header(path: Path) -> Backup:
    with _opened(path) as file:
        return Backup.read(file, path)


def _digest(header: Backup) -> bytes:
    return sha256(header.to_bytes()).hexdigest().encode()


def _prepare(path: Path, folder: Path, beside: Path, charge: Charge | None) -> tuple[Backup, tuple[str, ...]]:
    """Unpack a backup beside the site's files, check it, charge what it lacks, and decide that it is restored."""
    header = _unpack(path, beside)
    place = read_site(beside)
    _check_own(path, header, beside, folder)
    check_ledgers(place)
    kept: tuple[str, ...] = ()
    heads = list[SignedHead]()
    if (folder / SETTINGS).exists() or any((folder / name).exists() for name in _KEPT_HEADS):
        kept, heads = _continued(place, folder, older=charge is not None)
    if (folder / SETTINGS).exists():
        kept = (*kept, SETTINGS)  # the policy may have become stricter since
    if charge:
        charge(place, heads)
    for name in kept:
        (beside / name).unlink(missing_ok=True)
    replace_file(beside / _DIGEST, [_digest(header)])
    beside.rename(folder / RESTORED)
    sync_folder(folder)
    return header, kept


def _put_in_place(folder: Path) -> None:
    """Put the files of a complete backup where they belong, also on other disks. It may be repeated."""
    done = folder / RESTORED
    for path in sorted(done.rglob("*")):
        name = path.relative_to(done)
        if path.is_file() and str(name) != _DIGEST:
            place = Path(os.path.realpath(folder / name)) if (folder / name).exists() else folder / name
            make_folder(place.parent)
            try:
                path.replace(place)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                replace_file(place, content_of(path))
            sync_folder(place.parent)
    done.rename(folder / RESTORING)  # from now on, commands open the site
    sync_folder(folder)
    rmtree(folder / RESTORING)


def _unpack(path: Path, folder: Path) -> Backup:
    """Unpack a backup into a new folder; check every file's length and digest."""
    with _opened(path) as file:
        header = Backup.read(file, path)
        for each in header.files:
            (folder / each.name).parent.mkdir(parents=True, exist_ok=True)
            digest = sha256()
            replace_file(folder / each.name, _pieces(file, each.size, digest))
            if digest.hexdigest() != each.digest:
                raise damaged(path)
        if file.read(1):
            raise damaged(path)
    return header


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", opener=private)
    except FileNotFoundError as error:
        msg = f"{path}: {reason(error)}; name a file of cloister backup"
        raise BackupError(msg) from error


def _pieces(file: BinaryIO, size: int, digest: Any) -> Iterator[bytes]:  # noqa: ANN401 - hashlib's type has no name
    while size > 0 and (piece := file.read(min(size, STEP))):
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
            raise damaged(path)
        return
    vault = opened(unpacked)
    if not hmac.compare_digest(header.mac, header.of_vault(vault.data_key)):
        raise damaged(path)
    if is_protected(folder) and header_of(folder).id == vault.header.id:
        remember(Vault(folder, header_of(folder), vault.data_key).checked())
        finish(folder)  # what is in the clear would not open beside the backup's vault


def _continued(place: SiteFolder, folder: Path, *, older: bool) -> tuple[tuple[str, ...], list[SignedHead]]:
    """Return the files of the present folder that continue the backup's, and the heads that it has.

    Raises:
        BackupError: if the folder is another site's or has another data key, a ledger would be rolled back, or an older
            one is asked for and none lacks anything.
    """
    if (folder / SETTINGS).exists() and (site := read_site(folder).settings.site) != place.settings.site:
        msg = f"{folder} belongs to {site}, this backup to {place.settings.site}; name another folder"
        raise BackupError(msg)
    keys = [header_of(each).id if is_protected(each) else "" for each in (folder, place.folder)]
    if keys[0] != keys[1]:
        msg = f"{folder} is not encrypted as this backup is; restore into a new folder, and copy the records there"
        raise BackupError(msg)
    heads, kept = (
        list[SignedHead](),
        {name for name in names_of(folder) if is_log(name) and _continues(folder / name, place.folder / name)},
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
