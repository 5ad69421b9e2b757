"""What glibc does with memory that is freed: by default it keeps large arrays' for later, as much again as a model."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_PAGES = 1 << 19  # bytes from which an array gets pages of its own, which go back to the system with it


def return_memory() -> None:
    """Have what is freed go back to the system."""
    with suppress(AttributeError, OSError):  # other C libraries have no such knob
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)
