"""Write files atomically and read only regular files.

A file is written under a temporary name, synced, renamed, and its folder synced; a failed write leaves nothing behind.
Pipes and devices are refused, since reading them may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from privacy.errors import AuthenticityError, KeyFileError, MalformedError
from privacy.failures import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

T = TypeVar("T")

_ZEROS = 1 << 20  # bytes written at a time where a file system cannot preallocate
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file's content so that a crash leaves either the old or the new one; only its owner may read it.

    Raises:
        OSError: naming `path`, if it cannot be written; then the old content stays and no temporary file is left.
    """
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    with _created(beside, path) as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
        beside.replace(path)
    sync_folder(path.parent)


def link_atomically(path: Path, link: Path) -> None:
    """Give a file a second name, as a copy without cost; the file may be replaced but must never be changed in place.

    Raises:
        OSError: naming `link`, if it cannot be made; then the previous file of that name stays.
    """
    make_folder(link.parent)
    beside = link.with_name(f".{link.name}.{os.getpid()}.new")
    with naming(link):
        beside.unlink(missing_ok=True)  # left by a process that was killed
        try:
            os.link(path, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomically(link, path.read_bytes())
            return
        beside.replace(link)
        beside.unlink(missing_ok=True)  # `replace` does nothing between two names of one file
    sync_folder(link.parent)


def read_file(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        OSError: naming `path`, if it cannot be read, or is not a regular file.
    """
    with open_file(path) as file:
        return file.read()


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, without ever waiting on a pipe.

    Raises:
        OSError: naming `path`, if it cannot be read, or is not a regular file.
    """
    return open(path, "rb", opener=private)


def lost(path: Path) -> bool:
    """Return whether a path or its folder is a dangling link, for example to a disk that is not mounted."""
    return any(part.is_symlink() and not part.exists() for part in (path, path.parent))


def private(path: str, flags: int) -> int:
    """Open a file, as an `opener` for `open`; if it is created, only its owner may read it.

    Raises:
        OSError: naming `path`, if it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "a pipe or a device, not a file", path)


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
            if sync:
                os.fsync(descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
        if sync:
            sync_folder(path.parent)


def set_aside(path: Path, size: int) -> None:
    """Create a file of `size` bytes with their disk space allocated, so that later writes to it find room.

    Raises:
        OSError: naming `path`, if there is no room; then no file is left.
    """
    make_folder(path.parent)
    with _created(path, path) as file:
        _allocate(file, max(1, size))
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and sync their names to disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an `OSError`; the system does not name it when a disk is full."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


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


@contextmanager
def _created(path: Path, named: Path) -> Iterator[BinaryIO]:
    """Write a new file; remove it if anything fails."""
    with naming(named):
        try:
            with open(path, "wb", opener=private) as file:
                yield file
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def _allocate(file: BinaryIO, size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NO_ALLOCATION:
            raise
        file.writelines(bytes(min(_ZEROS, size - start)) for start in range(0, size, _ZEROS))
        file.flush()
