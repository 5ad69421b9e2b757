"""Files that are never torn: written beside, synced, renamed, folder synced; and a write that fails leaves nothing.

And files that are read: what is none, such as a pipe or a device, is refused, since it may never end.
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

_ZEROS = 1 << 20  # bytes at a time, where a file system cannot set a size aside
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK}
_NO_ALLOCATION = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace a file's content so that a crash leaves the old or the new one; only its owner may read it.

    Raises:
        OSError: naming `path`, if it cannot be written; the old content stays then, and nothing beside it.
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
    """Give a file, which others may replace but nobody changes, a second name: a copy that takes no time and no room.

    Raises:
        OSError: naming `link`, if it cannot be made; what had the name stays then.
    """
    make_folder(link.parent)
    beside = link.with_name(f".{link.name}.{os.getpid()}.new")
    with naming(link):
        beside.unlink(missing_ok=True)  # of a process that was killed
        try:
            os.link(path, beside)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomically(link, path.read_bytes())
            return
        beside.replace(link)
        beside.unlink(missing_ok=True)  # to replace a name of the same file does nothing
    sync_folder(link.parent)


def read_file(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        OSError: naming `path`, if it cannot be read, or is none.
    """
    with open_file(path) as file:
        return file.read()


def open_file(path: Path) -> BinaryIO:
    """Open a file to be read; never wait for a pipe that nobody writes to.

    Raises:
        OSError: naming `path`, if it cannot be read, or is none.
    """
    return open(path, "rb", opener=private)


def lost(path: Path) -> bool:
    """Whether a file that is missing, or its folder, is a link to nothing, such as a disk that is not mounted."""
    return any(each.is_symlink() and not each.exists() for each in (path, path.parent))


def private(path: str, flags: int) -> int:
    """Open a file, as `open` asks its `opener` to: if it is made, only its owner may read it.

    Raises:
        OSError: naming `path`, if it cannot be opened, or is none.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "a pipe or a device, and no file", path)


def append(path: Path, descriptor: int, data: bytes, *, sync: bool = True) -> None:
    """Append to a file that is open for appending; and sync it, also what others wrote to it.

    Raises:
        OSError: naming `path`, if it cannot be written; it is as long as before then.
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
    """Make a file of so many bytes that take up their place on the disk, for others to be written there later.

    Raises:
        OSError: naming `path`, if they cannot; no file is left then.
    """
    make_folder(path.parent)
    with _created(path, path) as file:
        _allocate(file, max(1, size))
        os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, whose names are as durable as what will lie in it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error say which file it is about: of a full disk, the system does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_document(path: Path, open_document: Callable[[bytes], T], advice: str) -> T:
    """Read a signed document from a file.

    Args:
        path: of the file.
        open_document: checks the document's bytes and returns what they say.
        advice: what to do if the file cannot be read.

    Raises:
        KeyFileError: naming the file, if it cannot be read, or the document is not what it should be.
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
    """Name the file in which a document lies that is not what it should be.

    Raises:
        KeyFileError: in place of an `AuthenticityError` or a `MalformedError`; where a file lies does not leave a site.
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
