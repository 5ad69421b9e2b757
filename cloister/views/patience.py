"""Tell a waiting user what is going on, on standard error, if it takes longer than a second."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE = 1.0  # seconds


@contextmanager
def patience(doing: str) -> Iterator[None]:
    """Print what is being done on standard error, if it takes longer than a second."""
    timer = threading.Timer(_PATIENCE, lambda: typer.echo(f"{doing} …", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
