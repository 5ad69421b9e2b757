"""A progress bar, as all simulations have it."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(console: Console | None = None, *, visible: bool | None = None) -> Progress:
    """Return a bar that goes away at its end.

    Args:
        console: where; by default, standard error.
        visible: by default, in a terminal.
    """
    console = console or Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not (console.is_terminal if visible is None else visible),
    )  # fmt: skip
