"""Locks on files, which end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import BinaryIO


def locked(file: BinaryIO) -> bool:
    """Lock a file until it is closed, at the latest when the process ends; return False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
