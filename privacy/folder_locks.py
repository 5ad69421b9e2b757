"""Locks on the folders of servers and coordinators. A lock ends with its process at the latest."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from privacy.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_held: set[int] = set()
"""The descriptors of this process's locks."""


@contextmanager
def folder_alone(folder: Path) -> Iterator[None]:
    """Use a server's or a coordinator's folder while no other process does.

    Raises:
        VaultError: if another process uses it.
    """
    with _opened(folder) as descriptor:
        _lock(descriptor, fcntl.LOCK_EX, f"{folder}: a server or another command uses this folder; stop it, and run "
                                         "this again")  # fmt: skip
        yield


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Use a folder beside others, and keep `folder_alone` out.

    Raises:
        VaultError: if `folder_alone` is in it.
    """
    with _opened(folder) as descriptor:
        with suppress(OSError):  # a network's file system may lock no folders
            _lock(descriptor, fcntl.LOCK_SH, f"{folder}: this folder is being encrypted, decrypted or copied; wait "
                                             "until that has ended")  # fmt: skip
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        yield descriptor
    finally:
        if descriptor in _held:  # else this is a forked process
            _held.remove(descriptor)
            os.close(descriptor)  # which ends the lock


def _let_go() -> None:
    """Leave the locks to the parent, in a forked process: a child that outlives it must not keep them."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _lock(descriptor: int, kind: int, taken: str) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise VaultError(taken) from error
