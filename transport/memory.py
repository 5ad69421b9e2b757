"""Make glibc return freed memory to the system: by default it keeps that of large arrays, up to a model's size."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_M_MMAP_THRESHOLD = -3  # malloc.h
_OWN_PAGES = 1 << 19  # bytes: larger arrays get their own pages, which are returned when freed


def return_memory() -> None:
    """Have freed memory returned to the system."""
    with suppress(AttributeError, OSError):  # other C libraries lack this option
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES)


def trim() -> None:
    """Return freed memory to the system that smaller objects between it would keep here."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
