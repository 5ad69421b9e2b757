"""Show a run: one row per round and a progress bar, readable in 80 columns and without a terminal."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import override

from strategies.event_lines import line_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

_ONE_SECOND, _ONE_MINUTE = 0.9995, 59.95  # less is written as less
_ROW = "{:>5}  {:>5}  {:<6}  {:<8}  {:<16}  {:>9}  {:>7}"
_LARGE = 1000  # figures from here on have an exponent, or the next unit
_WIDE = 1000  # columns of output that is not a terminal, so that lines are never broken


class _Console(Console):
    @override
    def on_broken_pipe(self) -> None:
        """Raise for the command to handle; rich would end the process."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def make_console(*, json: bool) -> Console:
    """Return a console on standard output or, if that carries JSON, on standard error."""
    console = _Console(stderr=json, highlight=False, emoji=False)
    return console if console.is_terminal else _Console(stderr=json, highlight=False, emoji=False, width=_WIDE)


def size(count: float) -> str:
    """Format a number of bytes.

    >>> size(999), size(4096), size(93_000)
    ('999 B', '4.1 kB', '93 kB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < _LARGE or unit == "GB":
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= _LARGE
    raise AssertionError


def duration(seconds: float) -> str:
    """Format a duration.

    >>> duration(0.0042), duration(59.4), duration(61), duration(3725)
    ('4.2 ms', '59.4 s', '1 min 01 s', '1 h 02 min')
    """
    if seconds < _ONE_SECOND:
        return f"{1000 * seconds:.3g} ms"
    if seconds < _ONE_MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"  # noqa: PLR2004


class RoundTable:
    """Shows a run's events: a row per round, and a progress bar below."""

    def __init__(
        self, console: Console, budget: float | None = None, own: Callable[[int], Mapping[str, float]] | None = None
    ) -> None:
        """Take a budget to show in the header, and a function that reads a round's metrics from the sites' folders."""
        self._console, self._budget, self._own = console, budget, own
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=None)
        self._expected: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._bar.stop()

    def status(self, text: str) -> None:
        """Show a status below the table."""
        self._bar.update(self._task, description=text)

    def note(self, text: str) -> None:
        """Show a line among the rows."""
        self._print(f"       {text}", "yellow")

    def show(self, event: dict[str, Any]) -> None:
        """Show one event of the server's event log."""
        if event["event"] in {"started", "resumed"}:
            self._expected = set(event["sites"])
            self._bar.update(self._task, total=event["rounds"], completed=event["ended"], description="rounds")
            if event["event"] == "resumed":
                self._print(f"going on after round {event['ended']} of {event['rounds']}", "")
            limit = f" of {self._budget:g}" if self._budget else ""
            if self._own:
                self._print("loss, accuracy: each hospital's own, read in its folder; they never left it", "")
            self._print(_ROW.format("round", "sites", "loss", "accuracy", f"ε spent{limit}", "sent", "time"), "bold")
        elif event["event"] == "waiting":
            self._print(f"       {len(event['sites'])} of {event['minimum']} sites are ready; waiting", "yellow")
            self._print_problems(event)
        elif event["event"] == "epoch":
            self._print(f"       key epoch {event['epoch']}: made at {event['leader']}, sealed to every site", "")
        elif event["event"] == "roster":
            self._print(f"       roster {event['version']}: {len(event['sites'])} of the run's sites are members", "")
        elif event["event"] in {"away", "back"}:
            self.note(line_of(event))
        elif event["event"] == "round":
            self._show_round(event)
            self._bar.advance(self._task)
        elif event["event"] == "failed":
            self._print(f"✗ {event['reason']}", "red")

    def _show_round(self, event: dict[str, Any]) -> None:
        metrics = (self._own(event["round"]) if self._own and event["released"] else None) or event.get("metrics", {})
        epsilon = max(event["epsilon"].values(), default=None)
        row = _ROW.format(
            event["round"],
            f"{len(event['sites'])}/{len(self._expected)}",
            _figure(metrics.get("loss"), 3),
            _figure(metrics.get("accuracy"), 3),
            _figure(epsilon, 2),
            size(event["bytes_up"]),
            f"{event['seconds']:.2f} s",
        )
        self._print(row, "" if event["released"] else "yellow")
        if "reason" in event:
            self._print(f"       {'' if event['released'] else 'nothing released: '}{event['reason']}", "yellow")
        self._print_problems(event)

    def _print_problems(self, event: dict[str, Any]) -> None:
        for site, reason in sorted(event["problems"].items()):
            self._print(f"       {site}: {reason}", "yellow")

    def _print(self, text: str, style: str) -> None:
        # Show text literally: no [markup], no :emoji:.
        self._console.print(text, style=style or None, markup=False, emoji=False, soft_wrap=True)


def _figure(value: float | None, digits: int) -> str:
    """Format a number so that it always fits its column."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if abs(value) < _LARGE else f"{value:.0e}"


class TableHandler(logging.Handler):
    """Shows the events of a run in this process as they are logged."""

    def __init__(self, table: RoundTable) -> None:
        super().__init__()
        self._table = table

    def emit(self, record: logging.LogRecord) -> None:
        """Show the event that a log record carries."""
        if (entry := getattr(record, "entry", None)) is not None:
            self._table.show(entry)


@contextmanager
def listening(table: RoundTable) -> Iterator[None]:
    """Show every run of this process in the table."""
    logger, handler = logging.getLogger("cloister.run"), TableHandler(table)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
