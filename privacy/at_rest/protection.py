"""Encrypt an existing folder, decrypt it again, and change what opens it. Each can be killed at any point.

`vault.json` is written first, and says that the folder is being encrypted: from then on, every file is written
encrypted, and read in either form. Then each file is replaced by its encrypted form. The old content keeps a temporary
name until it is overwritten with zeros, so that the next call finds it, too; it is not overwritten where a third name
leads to it. In the end the vault says that everything is encrypted, and a file that is not is refused. Whoever is
killed in between leaves a folder that opens, and that the next call finishes.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.at_rest.held import FILES, FOLDERS, RESTORING, is_log
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
from privacy.files import private, replace_file, sync_folder, unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from privacy.at_rest.vault import Secret

Values = Callable[[], int]
"""Encrypts or decrypts, as the folder's vault says, what a folder keeps elsewhere than in files; returns how much."""

_STEP = 1 << 18  # bytes read at a time
_ENTRIES = 1 << 16  # bytes of entries that become one record


def no_values() -> int:
    """Encrypt nothing: everything is in files."""
    return 0


def protect(folder: Path, secret: Secret | None, files: tuple[str, ...], values: Values = no_values) -> int:
    """Encrypt a folder, or change what opens it; finish what an earlier call began.

    Args:
        folder: the folder; nobody else may use it meanwhile.
        secret: what opens it from now on; None to leave that as it is.
        files: further files and folders to encrypt, relative to the folder.
        values: encrypts what is not in files, too.

    Returns:
        How many files and values were encrypted.

    Raises:
        OSError, VaultError: if a file cannot be read or written, or the present secret is missing or wrong.
    """
    for path in (folder / RESTORING).rglob("*"):  # half a backup, perhaps in the clear
        if path.is_file():
            _remove(path)
    if is_protected(folder):
        vault = opened(folder)
        vault = vault.with_secret(secret) if secret else vault
    elif secret:
        vault = Vault.create(folder, secret, files, "encrypting")
    else:
        return 0
    _keep(vault.with_state("encrypting", files))
    return finish(folder, values)


def unprotect(folder: Path, values: Values = no_values) -> int:
    """Decrypt a folder; return how many files and values were decrypted.

    Raises:
        OSError, VaultError: as `protect`.
    """
    vault = opened(folder)
    _keep(vault.with_state("decrypting", vault.header.files))
    return finish(folder, values)


def finish(folder: Path, values: Values = no_values) -> int:
    """Finish what was begun, if anything was; return how many files and values were encrypted or decrypted.

    Raises:
        OSError, VaultError: as `protect`.
    """
    _remove_leftovers(folder)
    state = header_of(folder).state
    if state == "encrypted":
        return 0
    vault = opened(folder)
    done = 0
    found = dict.fromkeys(_files(vault))
    lefts = set(filter(_is_left, found))
    for path in lefts:
        _remove(path)
    for path in (each for each in found if each not in lefts):
        done += _encrypt(vault, path) if state == "encrypting" else _decrypt(vault, path)
    done += values()
    if state == "encrypting":
        _keep(vault.with_state("encrypted", vault.header.files))
    else:
        gone = folder / f".{FILE}.old.new"
        (folder / FILE).replace(gone)
        sync_folder(folder)
        _remove(gone)
        forget(folder)
    return done


def _keep(vault: Vault) -> None:
    path = vault.folder / FILE
    with overwritten(path):  # the data key must not stay on disk under an old passphrase
        replace_file(path, [vault.header.to_bytes()])
    remember(vault)


def _remove_leftovers(folder: Path) -> None:
    """Remove the data key under secrets that were never put in place, or are no more."""
    for path in unfinished(folder / FILE):
        _remove(path)


def _remove(path: Path) -> None:
    """Overwrite a file with zeros, unless another name leads to it, and remove it."""
    if not path.is_symlink() and path.stat().st_nlink == 1:
        with suppress(PermissionError):  # another account's
            path.chmod(0o600)  # its owner may have kept even themselves from writing
            with open(path, "r+b", opener=private) as file:
                _overwrite(file)
    path.unlink()


def _overwrite(file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    file.writelines(bytes(min(_STEP, size - start)) for start in range(0, size, _STEP))
    file.flush()
    os.fsync(file.fileno())


def _files(vault: Vault) -> Iterator[Path]:
    """Yield the files to encrypt, and temporary ones beside them."""
    for name in sorted({*FOLDERS, *FILES, *vault.header.files}):
        path = vault.folder / name
        for found in (*unfinished(path), path, *(path.rglob("*") if path.is_dir() else ())):
            if found.is_symlink():
                yield from unfinished(Path(os.path.realpath(found)))
            relative = found.relative_to(vault.folder).as_posix()
            if _is_left(found) or (found.is_file() and vault.header.holds(relative)):
                yield found


def _is_left(path: Path) -> bool:
    """Return whether this is a temporary file, left by a process that was killed."""
    named = path.name.startswith(".") and path.name.endswith(".new")
    return named and (path.is_symlink() or path.is_file())


def _encrypt(vault: Vault, path: Path) -> bool:
    """Replace a file by its encrypted form, unless it is; return whether it was replaced."""
    relative = path.relative_to(vault.folder).as_posix()
    with _alone(path) as file:
        if is_sealed(file):
            return False
        kind = LOG if is_log(relative) else WHOLE
        key = FileKey(vault.data_key, bytes.fromhex(vault.header.id), relative, kind, os.urandom(SALT_BYTES), path)
        with overwritten(path):
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
def overwritten(path: Path) -> Iterator[None]:
    """Overwrite a file's content with zeros once it has been replaced; until then, it has a temporary name too."""
    path = Path(os.path.realpath(path))
    old = path.with_name(f".{path.name}.old.new")
    if os.path.lexists(old):
        _remove(old)
    try:
        os.link(path, old)
    except FileNotFoundError:  # there is none yet
        yield
    except OSError:  # a file system without second names
        with ExitStack() as stack:
            file = None
            with suppress(PermissionError):
                file = stack.enter_context(open(path, "r+b", opener=private))
            yield
            if file and not os.fstat(file.fileno()).st_nlink:
                _overwrite(file)
    else:
        try:
            yield
        finally:
            _remove(old)
