"""Write files atomically and read only regular files; in a site's encrypted folder, encrypt and decrypt them.

A file is written under a temporary name, synced, renamed, and its folder synced; a failed write leaves nothing behind.
Pipes and devices are refused, since reading them may never end. Whether a file is encrypted depends on its folder alone
(`privacy.at_rest.vaults`): callers do not notice.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar, cast

from privacy.at_rest.sealed import (
    HEAD_BYTES,
    SALT_BYTES,
    WHOLE,
    FileKey,
    SealedFile,
    is_sealed,
    key_of_head,
    sealed_parts,
    sealed_size,
)
from privacy.at_rest.vault import FILE
from privacy.at_rest.vaults import is_below_vault, vault_of
from privacy.errors import AuthenticityError, KeyFileError, MalformedError, VaultError
from privacy.failpoints import failpoint
from privacy.failures import reason
from privacy.files import created, make_folder, naming, private, replace_file, sync_folder, temporary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from privacy.at_rest.vault import Vault

__all__ = [
    "append", "link_atomically", "lost", "make_folder", "move", "naming", "open_file", "private", "read_document",
    "read_file", "set_aside", "size_of", "sync_folder", "write_atomically",
]  # fmt: skip

T = TypeVar("T")

_ZEROS = 1 << 20  # bytes written at a time where a file system cannot preallocate
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def write_atomically(path: Path, *parts: bytes | memoryview, sync: bool = True) -> None:
    """Replace a file's content so that a crash leaves either the old or the new one; only its owner may read it.

    Args:
        path: the file's path.
        parts: the new content.
        sync: whether it is on disk when this returns.

    Raises:
        OSError: naming `path`, if it cannot be written; then the old content stays and no temporary file is left.
        VaultError: if the folder is encrypted and cannot be opened.
    """
    held = vault_of(path)
    if held and held[0].header.state != "decrypting":
        replace_file(path, sealed_parts(new_key(*held, path, WHOLE), parts), sync=sync)
    else:
        replace_file(path, parts, sync=sync)


def link_atomically(path: Path, link: Path) -> None:
    """Give a file a second name, as a copy without cost; the file may be replaced but must never be changed in place.

    An encrypted file is bound to its name, so it is copied.

    Raises:
        OSError: naming `link`, if it cannot be made; then the previous file of that name stays.
    """
    if vault_of(path) or vault_of(link):
        _copy(path, link)
        return
    make_folder(link.parent)
    beside = temporary(link)
    with naming(link):
        beside.unlink(missing_ok=True)  # left by a process that was killed
        try:
            os.link(path, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _copy(path, link)
            return
        beside.replace(link)
        beside.unlink(missing_ok=True)  # `replace` does nothing between two names of one file
    sync_folder(link.parent)


def move(path: Path, to: Path) -> None:
    """Rename a file. An encrypted one is bound to its name, so it is copied first: a crash may leave both.

    Raises:
        OSError: if it cannot be moved; then it is where it was.
    """
    if vault_of(path) or vault_of(to):
        _copy(path, to)
        path.unlink()
    else:
        path.replace(to)


def _copy(path: Path, to: Path) -> None:
    with open_file(path) as file:
        pieces = iter(lambda: file.read(_ZEROS), b"")
        held = vault_of(to)
        if held and held[0].header.state != "decrypting":
            replace_file(to, sealed_parts(new_key(*held, to, WHOLE), pieces))
        else:
            replace_file(to, pieces)


def new_key(vault: Vault, relative: str, path: Path, kind: bytes) -> FileKey:
    """Return a new key for a file of a vault."""
    return FileKey(vault.data_key, bytes.fromhex(vault.header.id), relative, kind, os.urandom(SALT_BYTES), path)


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        OSError: naming `path`, if it cannot be read, or is not a regular file.
        VaultError: as `open_file`; or if the file was altered.
    """
    with open_file(path) as file:
        return file.read()


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading, without ever waiting on a pipe. An encrypted one is decrypted as it is read.

    Raises:
        OSError: naming `path`, if it cannot be read, or is not a regular file.
        VaultError: naming `path`, if it is encrypted and cannot be opened, or should be encrypted and is not.
    """
    held = vault_of(path)
    file = open(path, "rb", opener=private)  # noqa: SIM115 - the caller closes it
    try:
        if not must_open(file, held, path):
            return file
        vault, relative = cast("tuple[Vault, str]", held)
        key = key_of_head(file.read(HEAD_BYTES), vault.data_key, bytes.fromhex(vault.header.id), relative, path)
        if key.kind != WHOLE:
            raise key.altered()  # noqa: TRY301 - closes the file
        return io.BufferedReader(SealedFile(file, key))
    except BaseException:
        file.close()
        raise


def must_open(file: BinaryIO, held: tuple[Vault, str] | None, path: Path) -> bool:
    """Return whether a file, open at its start, is encrypted.

    Raises:
        VaultError: if it is and should not be, or the other way around.
    """
    sealed = is_sealed(file)
    if sealed and held is None:
        msg = (
            f"{path}: this file is encrypted, but not in its own folder beside {FILE}; restore that file, or take the "
            "content out with cloister export"
        )
        raise VaultError(msg)
    if not sealed and held and held[0].header.state == "encrypted":
        msg = (
            f"{path}: this file is not encrypted, though its folder is: it was cut, or put there by other means; "
            "restore it from a backup"
        )
        raise VaultError(msg)
    return sealed


def size_of(path: Path) -> int:
    """Return the length of a file's content.

    Raises:
        OSError, VaultError: as `open_file`.
    """
    with open_file(path) as file:
        return file.seek(0, os.SEEK_END)


def lost(path: Path) -> bool:
    """Return whether a path or its folder is a dangling link, for example to a disk that is not mounted."""
    return any(part.is_symlink() and not part.exists() for part in (path, path.parent))


def append(path: Path, descriptor: int, data: bytes, *, sync: bool = True) -> None:
    """Append to a file that is open for appending, and sync it, including what other processes wrote.

    Raises:
        OSError: naming `path`, if it cannot be written; then it has its previous length.
    """
    with naming(path):
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            failpoint("entry-written")
            if sync:
                os.fsync(descriptor)
            failpoint("entry-synced")
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
        if sync:
            sync_folder(path.parent)


def set_aside(path: Path, size: int) -> None:
    """Create a file with disk space for `size` bytes of content, so that later writes find room.

    Raises:
        OSError: naming `path`, if there is no room; then no file is left.
    """
    make_folder(path.parent)
    with created(path, path) as file:
        _allocate(file, sealed_size(size) if is_below_vault(path) else max(1, size))
        os.fsync(file.fileno())


def read_document(path: Path, open_document: Callable[[bytes], T], advice: str) -> T:
    """Read a signed document from a file.

    Args:
        path: the file's path.
        open_document: checks the document's bytes and returns their content.
        advice: what to do if the file cannot be read.

    Raises:
        KeyFileError: naming the file, if it cannot be read, or the document is malformed or not authentic.
    """
    try:
        data = read_file(path)
    except OSError as error:
        msg = f"{path}: {reason(error)}; {advice}"
        raise KeyFileError(msg) from error
    with _in_file(path):
        return open_document(data)


@contextmanager
def _in_file(path: Path) -> Iterator[None]:
    """Add the file's name to an error about the document in it.

    Raises:
        KeyFileError: instead of an `AuthenticityError` or `MalformedError`, since a path must not leave a site.
    """
    try:
        yield
    except (AuthenticityError, MalformedError) as error:
        msg = f"{path}: {error}"
        raise KeyFileError(msg) from error


def _allocate(file: BinaryIO, size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise
        file.writelines(bytes(min(_ZEROS, size - start)) for start in range(0, size, _ZEROS))
        file.flush()
