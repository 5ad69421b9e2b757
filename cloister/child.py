"""`python -m cloister.child MODULE ARGUMENTS`: run a module as a program that ends with the process that started it.

The parent holds the other end of the standard input, and writes nothing: once it is gone, however it ended, the input
ends, too. (Linux could send a signal instead, prctl(2), but when the thread ends that started the process.)
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

GRACE = 5.0
"""Seconds between terminating and killing."""


def _end_with(parent: int) -> None:
    while os.read(parent, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


def main() -> None:
    """Run the module that the arguments name, as `python -m` would."""
    parent = os.dup(0)  # which no program that this one starts inherits
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
