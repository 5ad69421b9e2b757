"""Show what a site's tasks would read of its records: columns, counts and problems."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from privacy.untrusted_text import plain

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 34  # characters of a range
_MOST = 20  # kinds of problems


def show(report: dict[str, Any], console: Console) -> None:
    """Print a report of `cloister data check`, in 80 columns."""
    for task in report["tasks"]:
        source = f", source {report['source']}" if report["source"] else ""
        _line(console, f"{task['task']} reads {report['file']}{source}", "bold")
        if task["columns"]:
            console.print(_table(task))
        _show_result(task, console)
    _line(console, "  these counts come from the records themselves, without noise: keep them at the site")


def _table(task: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("column", "kind", "range"):
        table.add_column(name, no_wrap=True)
    for name in ("missing", "clipped", "unknown"):
        table.add_column(name, justify="right", no_wrap=True)
    for column in task["columns"]:
        name = column["column"] + (" (target)" if column["role"] == "target" else "")
        counts = [f"{column[kind]:,}" if column[kind] else "–" for kind in ("missing", "clipped", "unknown")]
        table.add_row(*(Text(plain(cell, _WIDE)) for cell in (name, column["kind"], column["range"], *counts)))
    return table


def _show_result(task: dict[str, Any], console: Console) -> None:
    count, problems = task["problem_count"], task["problems"]
    for problem in problems[:_MOST]:
        _line(console, f"✗ {problem}", "red")
    if len(problems) > _MOST:
        _line(console, "  and other problems; --json lists more")
    if count:
        _line(console, f"✗ {count:,} problem{'s' * (count > 1)}: the agent would refuse to train", "red")
        _line(console, f"  records   {task['records']:,} without problems")
    else:
        records = f"{task['records']:,} record{'s' * (task['records'] != 1)}"
        line = f"✓ {records}: {task['training']:,} to train on, {task['held_out']:,} held out"
        if task["left_out"]:
            line += (
                f", {task['left_out']:,} left out (records_per_person = {task['records_per_person']} in [data] of "
                "site.toml: of each person, only the first are used)"
            )
        _line(console, line)
    for notice in task["notices"]:
        _line(console, f"  notice    {notice}", "yellow")
    _line(console, f"  model     gets inputs {task['inputs']}, targets {task['targets']}")


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text.rstrip(), style=style, markup=False, soft_wrap=True)
