"""Show how many records were read so far, on standard error: in a terminal as it goes, elsewhere not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from rich.console import Console


class Counting:
    """A line that counts, and goes when all is read."""

    def __init__(self, doing: str, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(doing, total=None)

    def at(self, count: int) -> None:
        """Show the number of records read so far."""
        self._bar.update(self._task, completed=count)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
