"""The command line's groups and larger commands, one per file."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STOPPED = 130
"""The exit code of Ctrl-C and SIGTERM."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on the last line.")]


@contextmanager
def going_on(folder: Path | None) -> Iterator[None]:
    """Say, on Ctrl-C within this context, that the same command goes on with what is in a folder, if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None:
            raise
        typer.echo(f"stopped; the same command goes on with what is in {folder}", err=True)
        raise typer.Exit(STOPPED) from None
