"""Show a simulation while it runs: a row for a round, and a bar with the time left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cloister.views.progress import progress_bar
from cloister.views.run import size
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Console

_MOST_METRICS, _MOST_ROWS = 3, 50


class SimulationTable:
    """Shows rows; of many rounds only some, so that a long run does not scroll its start away."""

    def __init__(self, console: Console) -> None:
        self._console, self._names, self._every = console, list[str](), 1
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self._bar.stop()

    def begin(self, sites: int, rounds: int, engine: str, why: str) -> None:
        """Say what is simulated."""
        self._console.print(f"{sites:,} sites, {rounds} rounds · engine {engine}: {why}", markup=False, soft_wrap=True)
        self._every = max(1, rounds // _MOST_ROWS)
        self._bar.update(self._task, total=rounds, description="rounds")

    def show(self, row: Mapping[str, Any]) -> None:
        """Show a round."""
        metrics = {name: value for name, value in row.items() if name not in NOT_METRICS}
        if metrics and not self._names:
            self._names = list(metrics)[:_MOST_METRICS]
            heads = "".join(f"{name:>12.12}" for name in self._names)
            self._console.print(f"round    sites{heads}   ε spent      sent      time", style="bold", markup=False)
        self._bar.advance(self._task)
        if row["round"] % self._every and row["released"]:
            return
        cells = "".join(f"{_figure(metrics.get(name)):>12}" for name in self._names)
        spent = f"{row['epsilon']:.2f}" if math.isfinite(row["epsilon"]) else "–"
        line = f"{row['round']:>5}  {row['sites']:>7,}{cells}  {spent:>8}  {size(row['bytes']):>8}  "
        line += f"{row['seconds']:>6.2f} s"
        self._console.print(line, markup=False, soft_wrap=True, style=None if row["released"] else "yellow")
        if row["problems"]:
            self._console.print(f"       {row['problems']}", markup=False, soft_wrap=True, style="yellow")

    def compare(self, done: int, sites: int) -> None:
        """Show how far the sites' own models are."""
        self._bar.update(self._task, completed=done, total=sites, description="models of sites")


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"
