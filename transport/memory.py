"""Make glibc return freed memory to the system: by default it keeps that of large arrays, up to a model's size.

A server returns each array when it is freed. A site that trains frees and takes the same arrays in every step, and
would spend more time on getting new pages than on computing: it keeps them until no message waits, in pages of 2 MB.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_PAGES = 1 << 19  # bytes: larger arrays get their own pages, which are returned when freed


def return_memory() -> None:
    """Have freed memory returned to the system."""
    with suppress(AttributeError, OSError):  # other C libraries lack this option
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)


def large_pages() -> None:
    """Have torch take large arrays in pages of 2 MB, where Linux allows it; before torch makes its first one."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def trim() -> None:
    """Return freed memory to the system that smaller objects between it would keep here."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
