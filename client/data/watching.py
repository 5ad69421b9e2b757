"""Show, in a terminal, how far a check has come that reads every record of a data set."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.data.inputs import Batch
    from client.data.site_records import Records

log = logging.getLogger("cloister.agent")

_MANY = 1000  # records; fewer take no time worth showing


def watched(records: Records, at_once: int, doing: str) -> Iterator[tuple[int, Batch]]:
    """Read all records in order, as `Records.in_order` does; say so if that may take long.

    Args:
        records: the records; those in memory are not worth showing.
        at_once: the number of records read at a time.
        doing: what each record is read for, such as `checking`.

    Raises:
        DataError: if a record cannot be read.
    """
    if records.in_memory or len(records) < _MANY:
        yield from records.in_order(at_once)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        log.info("%s each of %d records, which reads all of them once", doing, len(records))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=len(records))
        for start, batch in records.in_order(at_once):
            yield start, batch
            bar.update(task, completed=start + len(batch[1]))
