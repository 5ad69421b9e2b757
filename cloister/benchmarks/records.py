"""`cloister bench records`: how much of a training step is spent on reading records, and how much memory it takes.

Each row is measured in a fresh process: an epoch of DP-SGD on images in memory, on image files read by the site's own
process or by others that read ahead, on larger images with and without the cache of decoded ones, and on tables, which
a source reads once, at the start. Of many image files, 2,000 differ and the others are links to them: each is opened,
read and decoded by its own name, but most come from the memory in which the system keeps files, not from the disk.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cloister.benchmarks.record_times import CACHED, TENTHS, measured, write_images, write_parquet, write_sqlite
from cloister.views.progress import progress_bar
from transport.memory import large_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

MANY = 100_000
"""Images of the row that shows whether memory depends on their number."""

ROWS: tuple[tuple[str, int], ...] = (
    ("memory", 0), ("images", 0), ("images", 1), ("images", 2), ("photos", 0), ("cached", 0), ("encrypted", 0),
    ("parquet", 0), ("sql", 0),
)  # fmt: skip
_PHOTOS = {"photos", *CACHED}
_PHOTO_SIDE, _PHOTO_FILES, _FEWER = 1000, 32, 4  # pixels; different files; as many fewer images
_FILES = 2_000  # different image files; the others are links to them
_A_TABLE_HAS = 20  # rows for every image: they are that much smaller
_EVERY = 0.5  # seconds between two looks at how far a row is


def measure(count: int, many: int = 0, rows: Sequence[tuple[str, int]] = ROWS) -> dict[str, Any]:
    """Measure every source; show progress on standard error: a bar in a terminal, else lines.

    Args:
        count: the number of images.
        many: the number of images of one more row, with two processes that read ahead; 0: none.
        rows: sources, each with the number of processes that read ahead.

    Raises:
        DataError: if a package that a source needs is not installed.
    """
    with TemporaryDirectory(prefix="cloister-bench-") as name:
        folder = Path(name)
        paths = {"memory": (folder, count)}
        if any(source == "images" for source, _ in rows):
            paths["images"] = (write_images(folder, count, _FILES), count)
        for source in _PHOTOS & {source for source, _ in rows}:
            (folder / source).mkdir()
            few = max(1, count // _FEWER)
            paths[source] = (write_images(folder / source, few, _PHOTO_FILES, _PHOTO_SIDE), few)
        tables = {"parquet": write_parquet, "sql": write_sqlite}
        for source in tables.keys() & {source for source, _ in rows}:
            paths[source] = (tables[source](folder, _A_TABLE_HAS * count), _A_TABLE_HAS * count)
        measurements = [_row(source, workers, *paths[source]) for source, workers in rows]
        if many:
            (folder / "many").mkdir()
            measurements.append(_row("images", 2, write_images(folder / "many", many, _FILES), many))
    return {"rows": measurements}


def _row(source: str, workers: int, path: Path, count: int) -> dict[str, Any]:
    large_pages()  # as an agent does, for the process that measures
    context, console = get_context("spawn"), Console(stderr=True, highlight=False)
    doing, began, told = f"{source}, {workers} processes that read ahead", time.monotonic(), 0
    if not console.is_terminal:
        console.print(f"{doing}: {count:,} records", soft_wrap=True)
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(1, mp_context=context) as pool,  # a pool of multiprocessing's may start no processes
        progress_bar(console) as bar,
    ):
        read, task = manager.Value("q", 0), bar.add_task(doing, total=count)
        job = pool.submit(measured, source, workers, path, count, read)
        while not wait([job], timeout=_EVERY).done:
            bar.update(task, completed=read.value)
            tenths = read.value * TENTHS // count
            if tenths > told and not console.is_terminal:
                told = tenths
                console.print(f"  {read.value:,} after {time.monotonic() - began:.0f} s", soft_wrap=True)
        times = job.result()
    return {"source": source, "workers": workers, "records": count} | times


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [f"{'source':<10}{'workers':>8}{'records':>9}{'open s':>8}{'ms/record':>11}{'of a step':>11}{'more MB':>9}"]
    lines += [
        f"{row['source']:<10}{row['workers']:>8}{row['records']:>9,}{row['open_seconds']:>8.2f}"
        f"{row['ms_per_record']:>11.3f}{row['share_of_step']:>11.1%}{row['peak_mb']:>9.0f}"
        for row in report["rows"]
    ]
    worker = max(row["worker_mb"] for row in report["rows"])
    more = [f"each worker, a process that reads ahead, takes {worker:.0f} MB besides"] if worker else []
    more += [
        f"{row['records']:,} images: in each tenth of the epoch, {', '.join(f'{mb:.0f}' for mb in row['tenths_mb'])} MB"
        for row in report["rows"][-1:]
        if row["records"] >= MANY
    ]
    if any(row["source"] in _PHOTOS for row in report["rows"]):
        more.append(f"photos have {_PHOTO_SIDE} × {_PHOTO_SIDE} pixels; if cached, they are decoded when opened")
    return "\n".join(
        [*lines, "", "an epoch of DP-SGD in batches of 32; tables are read once, when they are opened", *more]
    )
