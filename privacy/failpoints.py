"""Named places at which the fault bench ends a process, or has its disk fail: `make reliability`.

A failpoint does nothing unless an environment variable names it:

    CLOISTER_FAILPOINT=ledger-written:3         the third time it gets there, the process ends by SIGKILL
    CLOISTER_FAILPOINT=ledger-written:3:ENOSPC  from the third time on, it fails there as on a full disk

Whoever can set the variable can also kill the process: it gives away nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "CLOISTER_FAILPOINT"

_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End the process here, or raise an error of the disk, if the environment says so.

    Raises:
        OSError: if the environment says so.
    """
    wanted = os.environ.get(VARIABLE, "")
    if not wanted or wanted.split(":")[0] != name:
        return
    _, count, *error = wanted.split(":")
    _passed[name] += 1
    if _passed[name] < int(count):
        return
    if error:
        number = int(getattr(errno, error[0]))
        raise OSError(number, os.strerror(number))
    if _passed[name] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
