"""Look at a site's records as a task will: what is read, replaced, refused. Only for the site; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from client.data.columns import Category, Column, Date, Flag, Number
from client.data.fitness import Fitness, load_records
from client.data.held_out import split_held_out
from client.data.sources.table_tensors import Counts, Findings, read_tensors
from client.state.refusals import Refusals
from client.task.guard import check_task
from client.task.image_task import ImageTask
from client.task.probe import make_model
from client.task.table_task import TableTask
from client.task.task import import_task
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from client.data.columns import AnyColumn
    from client.data.sources.chunks import Table
    from client.data.sources.listed_files import ImageRecords
    from client.settings import SiteFolder
    from client.task.probe import Example
    from client.task.task import Records, Task

_AT_ONCE = 64  # images at a time
_KINDS = {Number: "number", Category: "category", Flag: "flag", Date: "date"}


@dataclass
class _Inspection:
    """One task and what was found so far in a site's records."""

    place: SiteFolder
    name: str
    task: Task
    progress: Callable[[int], None]

    def run(self) -> dict[str, Any]:
        """Return the report."""
        example = check_task(self.task, self.name)
        fitness = Fitness(self.task, self.name, make_model(self.task, 0))
        findings, problem = Findings(), None
        inputs: Sequence[AnyColumn] = ()
        targets: Sequence[AnyColumn] = ()
        table: Table | None = None
        try:
            if isinstance(self.task, TableTask):
                inputs, targets, table = self.task.columns, self.task.targets, self.place.source.table()
                records = read_tensors(table, inputs, targets, findings, self.progress)[:2]
                if not findings.problem_count:
                    self._fit(example, fitness, records)
            elif isinstance(self.task, ImageTask):
                targets = self.task.targets
                images = self.task.records(self.place.source, findings, self.progress)
                table = images.table
                self._look(example, fitness, images, findings)
            else:
                records = load_records(self.task, self.name, example, self.place.source)
                findings.records = len(records[0])
                self._fit(example, fitness, records)
        except DataError as error:
            problem = str(error)
        problems = [each.sentence(table.path, table.row) for each in findings.problems] if table else []
        return {
            "task": self.name,
            "records": findings.records,
            **self._split(findings.records),
            "columns": [_described(column, findings, "input") for column in inputs]
            + [_described(column, findings, "target") for column in targets],
            "inputs": _form(example.inputs),
            "targets": _form(example.targets),
            "problem_count": findings.problem_count + (problem is not None),
            "problems": [*problems, *([problem] if problem else [])],
        }

    def _split(self, count: int) -> dict[str, int]:
        used, kept = split_held_out(count, self.place.settings.data.held_out)
        return {"training": len(used), "held_out": len(kept)}

    def _fit(self, example: Example, fitness: Fitness, records: Records) -> None:
        """Compute the loss of every record.

        Raises:
            DataError: if the task cannot use one.
        """
        example.check(*records, self.place.source.path)
        fitness.check(records, list(range(1, len(records[0]) + 1)), self.place.source.path)

    def _look(self, example: Example, fitness: Fitness, images: ImageRecords, findings: Findings) -> None:
        """Read every image, and compute its loss.

        Raises:
            DataError: if the task cannot use one.
        """
        batch = list[tuple[int, Any]]()
        for index in range(len(images)):
            problem, image = images.try_read(index)
            if problem is not None:
                findings.add([problem])
                findings.records -= 1
            else:
                batch.append((index, image))
            if batch and (len(batch) == _AT_ONCE or index == len(images) - 1):
                places = [place for place, _ in batch]
                records = torch.stack([image for _, image in batch]), images.targets[places]
                example.check(*records, images.table.path)
                fitness.check(records, [place + 1 for place in places], images.table.path)
                batch = []
            self.progress(index + 1)


def inspect(place: SiteFolder, name: str, progress: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Return what a task would read of a site's records, with the problems that keep it from training.

    Args:
        place: the site.
        name: the task, `module:Class`.
        progress: is told the number of records read so far.

    Raises:
        TaskError: if the task cannot be trained, whatever the records.
    """
    task = import_task(name)
    Refusals(place.folder).check(name, task)
    return _Inspection(place, name, task, progress).run()


def _form(part: Tensor) -> str:
    """Return a tensor's type and shape, with n for the number of records."""
    return f"{str(part.dtype).removeprefix('torch.')} ({', '.join(['n', *map(str, part.shape[1:])])})"


def _described(column: Column, findings: Findings, role: str) -> dict[str, Any]:
    counts = findings.counts.get(column.name, Counts())
    return {
        "column": column.name,
        "role": role,
        "kind": _KINDS[type(column)],
        "range": column.described,
        "missing": counts.missing,
        "clipped": counts.clipped,
        "unknown": counts.unknown,
    }
