"""Print a fairness table: what a model's metrics are in each subgroup, and how far apart the subgroups are."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME, _CELL = 14, 14
_SHORT = {
    "selection_rate": "selected",
    "true_positive_rate": "true pos.",
    "false_positive_rate": "false pos.",
}


def show_subgroups(
    column: str, table: dict[str, Any], line: Callable[[str], None], own: dict[str, Any] | None = None
) -> None:
    """Print one column's subgroups: a row for each value, then the gaps.

    Args:
        column: the column's name.
        table: its values and gaps, from a sum over sites.
        line: prints a line.
        own: the same, exactly, of this site alone.
    """
    names: list[str] = [
        name for name in next(iter(table["values"].values())) if name not in {"count", "count_error", "confusion"}
    ]
    _row(line, f"by {column}", ["records", *(_SHORT.get(name, name) for name in names)])
    for value, figures in table["values"].items():
        count = f"{figures['count']:.0f} ± {figures['count_error']:.0f}"
        _row(line, f"  {value}", [count, *(_said(figures[name]) for name in names)])
        if own:
            alone = own["values"][value]
            _row(line, "    alone", [str(alone["count"]), *(_said(alone[name]) for name in names)])
    for name, gap in table["gaps"].items():
        between = f", {gap['highest']} over {gap['lowest']}" if gap["value"] is not None else f": {gap['reason']}"
        alone = f"; alone {_said(own['gaps'][name])}" if own else ""
        line(f"  {name.replace('_', ' ')} {_said(gap)}{between}{alone}")


def _row(line: Callable[[str], None], name: str, cells: list[str]) -> None:
    short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    line(f"{short:<{_NAME}}" + "".join(f" {cell:>{_CELL}}" for cell in cells))


def _said(figures: dict[str, Any]) -> str:
    if figures["value"] is None:
        return "–"
    error = f" ± {number(figures['error'], digits=2)}" if "error" in figures else ""
    return number(figures["value"], digits=2) + error


def number(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, in seven characters.

    >>> [number(value) for value in (0.0, 0.04567, 14.127, 654.9, 123456.0, 1.2e9)]
    ['0', '0.0457', '14.1', '655', '123456', '1.2e+09']
    """
    if value == 0 or not 1e-4 <= abs(value) < 1e6:  # noqa: PLR2004
        return f"{value:.1e}" if value else "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(places, 5)}f}"
