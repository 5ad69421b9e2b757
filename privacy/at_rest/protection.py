"""Encrypt an existing folder, decrypt it again, and change what opens it. Each can be killed at any point.

`vault.json` is written first, and says that the folder is being encrypted: from then on, every file is written
encrypted, and read in either form. Then each file is replaced by its encrypted form, and the old content overwritten
with zeros where no other name leads to it. In the end the vault says that everything is encrypted, and a file that is
not is refused. Whoever is killed in between leaves a folder that opens, and that the next call finishes.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.at_rest.held import FILES, FOLDERS, is_log
from privacy.at_rest.sealed import (
    HEAD_BYTES,
    LOG,
    SALT_BYTES,
    WHOLE,
    FileKey,
    SealedFile,
    is_sealed,
    key_of_head,
    sealed_parts,
)
from privacy.at_rest.sealed_log import open_records, sealed_record
from privacy.at_rest.vault import FILE, Vault
from privacy.at_rest.vaults import forget, header_of, is_protected, opened, remember
from privacy.files import private, replace_file, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from privacy.at_rest.vault import Secret

_STEP = 1 << 18  # bytes read at a time
_ENTRIES = 1 << 16  # bytes of entries that become one record


def protect(folder: Path, secret: Secret | None, files: tuple[str, ...]) -> int:
    """Encrypt a site's folder, or change what opens it; finish what an earlier call began.

    Args:
        folder: the site's folder; nobody else may use it meanwhile.
        secret: what opens it from now on; None to leave that as it is.
        files: further files and folders to encrypt, relative to the folder.

    Returns:
        How many files were encrypted.

    Raises:
        OSError, VaultError: if a file cannot be read or written, or the present secret is missing or wrong.
    """
    if is_protected(folder):
        vault = opened(folder)
        vault = vault.with_secret(secret) if secret else vault
    elif secret:
        vault = Vault.create(folder, secret, files, "encrypting")
    else:
        return 0
    _keep(vault.with_state("encrypting", files))
    return finish(folder)


def unprotect(folder: Path) -> int:
    """Decrypt a site's folder; return how many files were decrypted.

    Raises:
        OSError, VaultError: as `protect`.
    """
    vault = opened(folder)
    _keep(vault.with_state("decrypting", vault.header.files))
    return finish(folder)


def finish(folder: Path) -> int:
    """Finish what was begun, if anything was; return how many files were encrypted or decrypted.

    Raises:
        OSError, VaultError: as `protect`.
    """
    _remove_leftovers(folder)
    state = header_of(folder).state
    if state == "encrypted":
        return 0
    vault = opened(folder)
    done = 0
    for path in list(_files(vault)):
        if _is_left(path):
            _remove(path)
        else:
            done += _encrypt(vault, path) if state == "encrypting" else _decrypt(vault, path)
    if state == "encrypting":
        _keep(vault.with_state("encrypted", vault.header.files))
    else:
        _remove(folder / FILE)
        sync_folder(folder)
        forget(folder)
    return done


def _keep(vault: Vault) -> None:
    path = vault.folder / FILE
    with _overwritten(path):  # the data key must not stay on disk under an old passphrase
        replace_file(path, [vault.header.to_bytes()])
    remember(vault)


def _remove_leftovers(folder: Path) -> None:
    """Remove the data key under secrets that were never put in place."""
    for path in folder.glob(f".{FILE}.*.new"):
        _remove(path)


def _remove(path: Path) -> None:
    with _overwritten(path):
        path.unlink()


def _files(vault: Vault) -> Iterator[Path]:
    """Yield the files to encrypt, and temporary ones beside them."""
    for name in sorted({*FOLDERS, *FILES, *vault.header.files}):
        path = vault.folder / name
        leftovers = path.parent.glob(f".{path.name}.*.new")
        for found in (*leftovers, path, *(path.rglob("*") if path.is_dir() else ())):
            relative = found.relative_to(vault.folder).as_posix()
            if found.is_file() and (vault.header.holds(relative) or _is_left(found)):
                yield found


def _is_left(path: Path) -> bool:
    """Return whether this is a temporary file, left by a process that was killed."""
    return path.name.startswith(".") and path.name.endswith(".new")


def _encrypt(vault: Vault, path: Path) -> bool:
    """Replace a file by its encrypted form, unless it is; return whether it was replaced."""
    relative = path.relative_to(vault.folder).as_posix()
    with _alone(path) as file:
        if is_sealed(file):
            return False
        kind = LOG if is_log(relative) else WHOLE
        key = FileKey(vault.data_key, bytes.fromhex(vault.header.id), relative, kind, os.urandom(SALT_BYTES), path)
        with _overwritten(path):
            _replace(path, _as_log(key, file.read()) if kind == LOG else sealed_parts(key, _read(file)))
    return True


def _as_log(key: FileKey, data: bytes) -> Iterator[bytes]:
    """Encrypt a file of lines. A last line that was torn is left out, as by everybody who reads it."""
    yield key.head
    lines, gathered, number = data[: data.rfind(b"\n") + 1].splitlines(keepends=True), b"", 0
    for line in lines:
        gathered += line
        if len(gathered) >= _ENTRIES:
            yield sealed_record(key, number, gathered)
            gathered, number = b"", number + 1
    if gathered:
        yield sealed_record(key, number, gathered)


def _decrypt(vault: Vault, path: Path) -> bool:
    """Replace a file by its content, unless it is; return whether it was replaced."""
    relative = path.relative_to(vault.folder).as_posix()
    with _alone(path) as file:
        if not is_sealed(file):
            return False
        key = key_of_head(file.read(HEAD_BYTES), vault.data_key, bytes.fromhex(vault.header.id), relative, path)
        if key.kind == LOG:
            _replace(path, open_records(key, key.head + file.read())[0])
        else:
            _replace(path, _read(SealedFile(file, key)))
    return True


def _read(file: BinaryIO | SealedFile) -> Iterator[bytes]:
    while data := file.read(_STEP):
        yield data


def _replace(path: Path, parts: Iterable[bytes]) -> None:
    replace_file(Path(os.path.realpath(path)), parts)  # a ledger may be a link to another disk


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


@contextmanager
def _overwritten(path: Path) -> Iterator[None]:
    """Overwrite a file's content with zeros once it has been replaced or removed, unless another name leads to it."""
    try:
        file = open(path, "r+b", opener=private)  # noqa: SIM115 - closed below
    except (FileNotFoundError, PermissionError):  # a file that its owner may only read is replaced all the same
        yield
        return
    with file as old:
        yield
        state = os.fstat(old.fileno())
        if state.st_nlink:
            return
        for start in range(0, state.st_size, _STEP):
            old.write(bytes(min(_STEP, state.st_size - start)))
        old.flush()
        os.fsync(old.fileno())
