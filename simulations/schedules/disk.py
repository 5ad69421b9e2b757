"""A party's folder, and what a crash leaves of it.

Production code writes real files. Its system calls are watched: each is a place where the party may be killed, and each
`fsync` moves what it covers from the page cache to the disk. After a kill the folder is as it was. After a power cut
it has what was synced, and of everything else what chance says: the old file, the new one, or a part of it.

A file's content is durable once the file was synced; its name, or a name's new file, once its folder was.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulations.schedules.clock import replaced

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

_CHANGES = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR


class Killed(BaseException):
    """Ends a party at once. Nothing catches it but the schedule."""


class _File(NamedTuple):
    inode: int
    content: bytes


class Disk:
    """The folder of one party."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prefix = folder, f"{folder}{os.sep}"
        self.operations = 0  # so far: places where the party could have been killed
        self.kill_at = set[int]()  # the operations before which it is killed
        self.dead = self._restoring = False
        self._synced: dict[int, bytes] = {}  # by inode
        self._durable = _files(folder)

    def read(self, path: Path) -> bytes | None:
        """Return what a power cut would leave of a file at the least; None if it may be lost."""
        file = self._durable.get(str(path))
        return file.content if file else None

    def operate(self) -> None:
        """Count an operation; end the party if that is what the schedule says, and whatever it does afterwards.

        Raises:
            Killed: if the party is dead.
        """
        if not self.dead:
            self.operations += 1
            self.dead = self.operations in self.kill_at
        if self.dead:
            raise Killed

    def change(self, event: str, paths: tuple[str, ...]) -> None:
        """Note a change before it is made."""
        if self._restoring:
            return
        self.operate()
        if event != "open":  # the inode of a file that is removed or replaced may be used again
            self._synced.pop(_inode(paths[-1]), None)

    def sync(self, path: str, descriptor: int) -> None:
        """Note that a file's content, or the names in a folder, are on disk."""
        self.operate()
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._sync_names(path)
            return
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - faster than Path
            content = file.read()
        self._synced[status.st_ino] = content
        known = self._durable.get(path)
        if known and known.inode == status.st_ino:
            self._durable[path] = _File(status.st_ino, content)

    def _sync_names(self, folder: str) -> None:
        with os.scandir(folder) as entries:
            present = {entry.path: entry.inode() for entry in entries if entry.is_file()}
        below = f"{folder}{os.sep}"
        for path in [path for path in self._durable if path.startswith(below) and path not in present]:
            if os.sep not in path[len(below) :]:
                del self._durable[path]
        for path, inode in present.items():
            known = self._durable.get(path)
            if known is None or known.inode != inode:
                self._durable[path] = _File(inode, self._synced.get(inode, b""))

    def restart(self, rng: random.Random | None = None) -> None:
        """Bring the party back, after a kill or, with `rng`, a power cut."""
        self.dead = False
        self.kill_at = {place for place in self.kill_at if place > self.operations}
        if rng is None:
            return
        present, self._restoring = _files(self.folder), True
        for path in sorted(present.keys() | self._durable.keys()):
            left, now = self._left(rng, self._durable.get(path), present.get(path)), present.get(path)
            if left is None:
                Path(path).unlink(missing_ok=True)
            elif now is None or now.content != left:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_bytes(left)
        self._restoring = False
        self._synced.clear()
        self._durable = _files(self.folder)

    def _left(self, rng: random.Random, durable: _File | None, present: _File | None) -> bytes | None:
        """Return what a power cut leaves of a file; None if nothing."""
        kept = durable.content if durable else None
        if present == durable or rng.random() < 1 / 2:
            return kept
        if present is None:
            return None
        synced = self._synced.get(present.inode)
        if durable and durable.inode == present.inode:
            synced = durable.content
        if synced is None:
            return present.content[: rng.randrange(len(present.content) + 1)]
        if present.content.startswith(synced):  # its new end may be torn
            return present.content[: rng.randint(len(synced), len(present.content))]
        return synced


_disks: list[Disk] = []


@contextmanager
def watched(*disks: Disk) -> Iterator[None]:
    """Watch these folders within this context."""
    _listen()
    with replaced(os, "fsync", _sync):
        _disks.extend(disks)
        try:
            yield
        finally:
            _disks.clear()


def _sync(descriptor: int) -> None:
    path = _named(descriptor)
    if disk := _of(path):
        disk.sync(path, descriptor)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _CHANGES or not _disks:
        return
    if event == "open" and (not isinstance(arguments[1], str) or not arguments[2] & _WRITING):
        return
    paths = tuple(_named(path) for path in arguments[: 2 if event in {"os.rename", "os.link"} else 1])
    if disk := _of(paths[-1]):
        disk.change(event, paths)


@cache
def _listen() -> None:
    sys.addaudithook(_audit)  # there is no way to remove it; without disks it does nothing


def _named(path: object) -> str:
    return os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)  # type: ignore[call-overload]  # noqa: PTH115


def _of(path: str) -> Disk | None:
    path += os.sep
    for disk in _disks:
        if path.startswith(disk.prefix):
            return disk
    return None


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - a name from the system
    except OSError:
        return -1


def _files(folder: Path) -> dict[str, _File]:
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)  # noqa: PTH118 - for thousands of files: faster than Path
            with open(path, "rb") as file:  # noqa: PTH123
                found[path] = _File(os.fstat(file.fileno()).st_ino, file.read())
    return found
