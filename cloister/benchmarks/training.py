"""`cloister bench training`: the cost of privacy in training, for a site's own mode and optionally Opacus's modes.

For each model and batch size, all modes take turns, one epoch each, so that a busy machine slows all alike. A mode's
time is that of its fastest turn, because other load on the machine only slows turns down. Opacus's modes get whole
batches, as in Opacus, and the same noise.

By default all modes, plain training included, use one core, and their processor time counts. With more cores, the time
is that of a clock on the wall, and every mode takes turns with one thread of torch and with one per core, of which the
faster counts. With one, a site draws the noise on a core that is left.

Memory is measured by the system in a fresh process: the peak while training an epoch, minus the memory with libraries,
model, records and one step of plain training.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cloister.benchmarks.training_times import MODES, Course, on_cores
from cloister.benchmarks.zoo import SPECIMENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloister.benchmarks.training_times import Mode


OURS: tuple[Mode, ...] = ("plain", "auto")
EVERY: tuple[Mode, ...] = MODES


def measure(
    repeats: int, modes: Sequence[Mode] = EVERY, models: Sequence[str] = tuple(SPECIMENS), cores: int = 1
) -> dict[str, Any]:
    """Measure `repeats` turns of every mode, the first of which is `plain`; show progress on standard error."""
    courses = [Course(name, batch) for name in models for batch in SPECIMENS[name].batches]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True, highlight=False)
    rows = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=len(courses) * repeats)
        for course in courses:
            bar.update(task, description=f"{course.specimen}, batch {course.batch}")
            rows += _measure(course, repeats, modes, cores, lambda: bar.update(task, advance=1))
    return {"rows": rows, "repeats": repeats, "cores": cores}


def _measure(
    course: Course, repeats: int, modes: Sequence[Mode], cores: int, done: Callable[[], None]
) -> list[dict[str, Any]]:
    with on_cores(1):
        problems = {mode: course.refused(mode) for mode in modes}
        chosen = course.chosen()
    clock = time.process_time if cores == 1 else time.perf_counter
    turns: dict[Mode, list[tuple[float, int]]] = {mode: [] for mode in modes if not problems[mode]}
    for _ in range(repeats):
        for mode, timed in turns.items():
            for threads in sorted({1, cores}):
                with on_cores(cores, threads):
                    timed.append((course.seconds(mode, clock), threads))
        done()
    best = {mode: min(timed) for mode, timed in turns.items()}
    plain, _ = best["plain"]
    return [
        {"model": course.specimen, "batch": course.batch, "mode": mode}
        | (
            {"seconds": None, "threads": None, "peak_mb": None, "ratio": None, "refused": problems[mode]}
            if problems[mode]
            else {
                "seconds": round(best[mode][0], 4),
                "threads": best[mode][1],
                "peak_mb": round(_in_a_fresh_process(course, mode) / 1e6, 1),
                "ratio": round(best[mode][0] / plain, 2),
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
    with on_cores(1):
        return Course(specimen, batch).peak_bytes(mode)


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    cores = report["cores"]
    lines = [f"{'':20}{'batch':>6}  {'':12}{'seconds':>9}{'× plain':>9}{'more MB':>9}"]
    for row in report["rows"]:
        first = row["mode"] == MODES[0]
        mode = row["mode"] if cores == 1 or row["seconds"] is None else f"{row['mode']}, {row['threads']}"
        name = f"{row['model'] if first else '':<20}{row['batch'] if first else '':>6}  {mode:<12}"
        if row["seconds"] is None:
            lines.append(f"{name}{'cannot train it':>27}")
        else:
            chosen = f"  {row['chosen']}" if "chosen" in row else ""
            lines.append(f"{name}{row['seconds']:>9.3f}{row['ratio']:>9.2f}{row['peak_mb']:>9.0f}{chosen}")
    what = (
        "processor seconds per epoch, one core" if cores == 1 else f"seconds per epoch, {cores} cores, 1 thread or more"
    )
    return "\n".join([*lines, "", f"{what}; the fastest of {report['repeats']} repetitions"])
