"""Open, make and sync files and folders, whatever is in them."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

_TEMPORARY = re.compile(r"\..+\.\d+\.new")
_ABANDONED_SECONDS = 6 * 3600.0


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


@contextmanager
def created(path: Path, named: Path) -> Iterator[BinaryIO]:
    """Write a new file; remove it if anything fails."""
    with naming(named):
        try:
            with open(path, "wb", opener=private) as file:
                yield file
        except BaseException:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise


def temporary(path: Path) -> Path:
    """Return the name under which this process writes a file before it takes its place."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def unfinished(path: Path) -> list[Path]:
    """Return files of that kind, left by processes that were killed."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.*.new"))


def remove_unfinished(folder: Path, within: Iterable[str]) -> None:
    """Remove such files in a folder, and anywhere in these folders in it.

    Nobody writes to a file for hours without a byte: a younger one may be a living process's. Whatever cannot be
    removed stays.
    """
    beneath = (found for name in within for found, _, _ in os.walk(folder / name))
    for each in (folder, *map(Path, beneath)):
        for path in each.glob(".*.new"):
            with suppress(OSError):
                left = path.lstat()
                old = time.time() - left.st_mtime > _ABANDONED_SECONDS
                if old and stat.S_ISREG(left.st_mode) and _TEMPORARY.fullmatch(path.name):
                    path.unlink()


def replace_file(path: Path, parts: Iterable[bytes | memoryview], *, sync: bool = True) -> None:
    """Replace a file's content so that a crash leaves either the old or the new one; only its owner may read it.

    Args:
        path: the file's path.
        parts: the new content.
        sync: whether it is on disk when this returns.

    Raises:
        OSError: naming `path`, if it cannot be written; then the old content stays and no temporary file is left.
    """
    make_folder(path.parent)
    beside = temporary(path)
    with created(beside, path) as file:
        failpoint("file-opened")
        file.writelines(parts)
        file.flush()
        failpoint("file-written")
        if sync:
            os.fsync(file.fileno())
        failpoint("file-synced")
        beside.replace(path)
    failpoint("file-replaced")
    if sync:
        sync_folder(path.parent)
