"""`cloister bench training`: what privacy costs in training, as a site computes it, or with Opacus's own ways as well.

Per model and batch, all ways take turns: a round of one epoch of each, again and again, so that a busy machine slows
all alike. A way's time is that of its fastest turn: whatever else runs on a machine only slows turns down. One thread
computes, in plain training too. Opacus's modes get whole batches, as Opacus has them, and the same noise.

Memory is what a fresh process needs more than it had before, as the system counts it: its peak while training an
epoch, less what it had with libraries, model, records and one step of plain training.
"""

from __future__ import annotations

from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cloister.benchmarks.training_times import MODES, Course, on_one_thread
from cloister.benchmarks.zoo import SPECIMENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.benchmarks.training_times import Mode


OURS: tuple[Mode, ...] = ("plain", "auto")
EVERY: tuple[Mode, ...] = MODES


def measure(repeats: int, modes: Sequence[Mode] = EVERY, models: Sequence[str] = tuple(SPECIMENS)) -> dict[str, Any]:
    """Measure so many turns of every mode, of which the first is `plain`; say on standard error how far it is."""
    courses = [Course(name, batch) for name in models for batch in SPECIMENS[name].batches]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, highlight=False)
    rows = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar, on_one_thread():
        task = bar.add_task("training", total=len(courses) * repeats)
        for course in courses:
            bar.update(task, description=f"{course.specimen}, batch {course.batch}")
            rows += _measure(course, repeats, modes, lambda: bar.update(task, advance=1))
    return {"rows": rows, "repeats": repeats}


def _measure(course: Course, repeats: int, modes: Sequence[Mode], done: Callable[[], None]) -> list[dict[str, Any]]:
    problems = {mode: course.refused(mode) for mode in modes}
    seconds: dict[Mode, list[float]] = {mode: [] for mode in modes if not problems[mode]}
    for _ in range(repeats):
        for mode, turns in seconds.items():
            turns.append(course.seconds(mode))
        done()
    chosen = course.chosen()
    plain = min(seconds["plain"])
    return [
        {"model": course.specimen, "batch": course.batch, "mode": mode}
        | (
            {"seconds": None, "peak_mb": None, "ratio": None, "refused": problems[mode]}
            if problems[mode]
            else {
                "seconds": round(min(seconds[mode]), 4),
                "peak_mb": round(_in_a_fresh_process(course, mode) / 1e6, 1),
                "ratio": round(min(seconds[mode]) / plain, 2),
            }
        )
        | ({"chosen": chosen.gradients, "physical_batch": chosen.physical_batch} if mode == "auto" else {})
        for mode in modes
    ]


def _in_a_fresh_process(course: Course, mode: Mode) -> int:
    """Return the bytes that training needs more than the process had."""
    # Of processes that are forked from one that has only imported, so that nobody else's memory is counted.
    context = get_context("forkserver")
    context.set_forkserver_preload(["cloister.benchmarks.training_times"])
    with context.Pool(1) as pool:
        return pool.apply(_peak, (course.specimen, course.batch, mode))


def _peak(specimen: str, batch: int, mode: Mode) -> int:
    with on_one_thread():
        return Course(specimen, batch).peak_bytes(mode)


def table(report: dict[str, Any]) -> str:
    """Write a report for people, in 80 columns."""
    lines = [f"{'':20}{'batch':>6}  {'':12}{'seconds':>9}{'× plain':>9}{'more MB':>9}"]
    for row in report["rows"]:
        first = row["mode"] == MODES[0]
        name = f"{row['model'] if first else '':<20}{row['batch'] if first else '':>6}  {row['mode']:<12}"
        if row["seconds"] is None:
            lines.append(f"{name}{'cannot train it':>27}")
        else:
            chosen = f"  {row['chosen']}" if "chosen" in row else ""
            lines.append(f"{name}{row['seconds']:>9.3f}{row['ratio']:>9.2f}{row['peak_mb']:>9.0f}{chosen}")
    return "\n".join([*lines, "", f"seconds an epoch, one thread; the fastest of {report['repeats']} turns"])
