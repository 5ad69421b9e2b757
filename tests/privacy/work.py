"""What other processes do in tests of parallel work: they load this file, and little besides."""

import os
import signal
from threading import Event

from privacy import parallel
from privacy.errors import MalformedError


def squared(number: int) -> tuple[int, int]:
    """Return the square, and which process found it."""
    return number * number, os.getpid()


def wait(seconds: float) -> int:
    Event().wait(seconds)
    return os.getpid()


def end(number: int) -> int:
    if number == parallel._FEW + 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    if number == parallel._FEW + 2:
        msg = f"item {number} is malformed"
        raise MalformedError(msg)
    return number
