"""A line for whoever waits: said once something takes longer than a second, where no output of it is read."""

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
    """Say on standard error what is being done, if it is not done within a second."""
    timer = threading.Timer(_PATIENCE, lambda: typer.echo(f"{doing} …", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
