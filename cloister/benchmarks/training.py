"""`cloister bench training`: the cost of privacy in training, for a site's own mode and optionally Opacus's modes.

For each model and batch size, all modes take turns, one epoch each, so that a busy machine slows all alike. A mode's
time is the processor time of its fastest turn, because other load on the machine only slows turns down. All modes,
plain training included, use one core; the noise is not drawn on another. Opacus's modes get whole batches, as in
Opacus, and the same noise.

Memory is measured by the system in a fresh process: the peak while training an epoch, minus the memory with libraries,
model, records and one step of plain training.
"""

from __future__ import annotations

from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cloister.benchmarks.training_times import MODES, Course, on_one_core
from cloister.benchmarks.zoo import SPECIMENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.benchmarks.training_times import Mode


OURS: tuple[Mode, ...] = ("plain", "auto")
EVERY: tuple[Mode, ...] = MODES


def measure(repeats: int, modes: Sequence[Mode] = EVERY, models: Sequence[str] = tuple(SPECIMENS)) -> dict[str, Any]:
    """Measure `repeats` turns of every mode, the first of which is `plain`; show progress on standard error."""
    courses = [Course(name, batch) for name in models for batch in SPECIMENS[name].batches]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, highlight=False)
    rows = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar, on_one_core():
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
    """Return the additional bytes that training needs, measured in a fresh process."""
    # Forked from a process that has only imported modules, so that no other memory is counted.
    context = get_context("forkserver")
    context.set_forkserver_preload(["cloister.benchmarks.training_times"])
    with context.Pool(1) as pool:
        return pool.apply(_peak, (course.specimen, course.batch, mode))


def _peak(specimen: str, batch: int, mode: Mode) -> int:
    with on_one_core():
        return Course(specimen, batch).peak_bytes(mode)


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [f"{'':20}{'batch':>6}  {'':12}{'seconds':>9}{'× plain':>9}{'more MB':>9}"]
    for row in report["rows"]:
        first = row["mode"] == MODES[0]
        name = f"{row['model'] if first else '':<20}{row['batch'] if first else '':>6}  {row['mode']:<12}"
        if row["seconds"] is None:
            lines.append(f"{name}{'cannot train it':>27}")
        else:
            chosen = f"  {row['chosen']}" if "chosen" in row else ""
            lines.append(f"{name}{row['seconds']:>9.3f}{row['ratio']:>9.2f}{row['peak_mb']:>9.0f}{chosen}")
    return "\n".join(
        [*lines, "", f"processor seconds per epoch, one core; the fastest of {report['repeats']} repetitions"]
    )
