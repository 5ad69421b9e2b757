"""Look at a site's records as a task will: what is read, replaced, refused. Only for the site; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from client.data.columns import Category, Column, Date, Flag, Number
from client.data.fitness import Called, Fitness, load_records
from client.data.held_out import split_held_out
from client.data.own_records import check_loaded
from client.data.site_records import InMemory
from client.data.sources.chunks import Problem
from client.data.sources.table_tensors import Counts, Declared, Findings, read_tensors
from client.state.refusals import Refusals
from client.task.forms import form_of
from client.task.guard import check_task
from client.task.image_task import ImageTask
from client.task.probe import make_model
from client.task.table_task import TableTask
from client.task.task import import_task
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from client.data.own_records import OwnRecords
    from client.data.sources.chunks import Table
    from client.data.sources.listed_files import ImageRecords
    from client.settings import SiteFolder
    from client.task.probe import Example
    from client.task.task import Task

_AT_ONCE = 64  # images at a time
_KINDS = {Number: "number", Category: "category", Flag: "flag", Date: "date"}


@dataclass
class _Inspection:
    """One task and what was found so far in a site's records."""

    place: SiteFolder
    name: str
    task: Task
    progress: Callable[[int], None]
    findings: Findings = field(default_factory=Findings)
    table: Table | None = None
    own: OwnRecords | None = None  # all records, if the task can read them

    def run(self) -> dict[str, Any]:
        """Return the report."""
        example = check_task(self.task, self.name)
        fitness = Fitness(self.task, self.name, make_model(self.task, 0))
        declared, source, problem = Declared((), ()), self.place.source, None
        try:
            if isinstance(self.task, TableTask):
                declared, self.table = self.task.declared, source.table()
                self._take_table(declared, example, fitness)
            elif isinstance(self.task, ImageTask):
                declared = self.task.declared
                images = self.task.records(source, self.findings, self.progress)
                self.table = images.table
                self._take_images(images, declared, example, fitness)
            else:
                self._take(load_records(self.task, self.name, example, source, self.place.settings.data), fitness)
        except DataError as error:
            problem = str(error)
        return {
            "task": self.name,
            "records": self.findings.records,
            **self._split(),
            "columns": self._described(declared.columns, "input") + self._described(declared.targets, "target"),
            "inputs": form_of(example.inputs),
            "targets": form_of(example.targets),
            "problem_count": self.findings.problem_count + (problem is not None),
            "problems": [*self._sentences(), *([problem] if problem else [])],
            "notices": [*(self.own.notices if self.own else ()), *_notices(self.task, fitness, self.table)],
        }

    def _take_table(self, declared: Declared, example: Example, fitness: Fitness) -> None:
        """Read a table, and compute the loss of every record if there is no problem.

        Raises:
            DataError: if the table cannot be read, or the task cannot use a record.
        """
        if self.table is None:
            return
        tensors_read = read_tensors(self.table, declared, self.findings, self.progress)
        if not self.findings.problem_count:
            persons = [] if tensors_read.persons is None else [tensors_read.persons]
            loaded = (tensors_read.inputs, tensors_read.targets, *persons)
            named = self.table.named
            columns = [named(column.name) for column in declared.columns for _ in range(column.width)]
            called = Called(self.table.row, columns, _only(declared, named))
            self._take(check_loaded(loaded, self.name, example, self.table.path), fitness, tensors_read.rows, called)

    def _take_images(self, images: ImageRecords, declared: Declared, example: Example, fitness: Fitness) -> None:
        """Read every image, and compute its loss.

        Raises:
            DataError: if the task cannot use one.
        """
        batch, table = list[tuple[int, Any]](), images.table
        called = Called(table.row, (), _only(declared, table.named))
        for index in range(len(images)):
            item = images.try_read(index)
            if isinstance(item, Problem):
                self.findings.add([item])
                self.findings.records -= 1
            else:
                batch.append((index, item))
            if batch and (len(batch) == _AT_ONCE or index == len(images) - 1):
                inputs, targets = (torch.stack(parts) for parts in zip(*(record for _, record in batch), strict=True))
                records = InMemory(*example.check(inputs, targets, table.path))
                fitness.check(records, [table.file_of(place)[0] for place, _ in batch], table.path, called)
                batch = []
            self.progress(index + 1)
        if not self.findings.problem_count:
            loaded = images if images.persons is None else (images, images.persons)
            self.own = check_loaded(loaded, self.name, example, table.path)

    def _take(self, own: OwnRecords, fitness: Fitness, rows: Sequence[int] = (), called: Called | None = None) -> None:
        """Compute the loss of every record.

        Raises:
            DataError: if the task cannot use one.
        """
        self.own, self.findings.records = own, len(own.records)
        fitness.check(own.records, rows or range(1, len(own.records) + 1), self.place.source.path, called)

    def _split(self) -> dict[str, int]:
        data = self.place.settings.data
        if self.own is None:
            used, kept = (len(side) for side in split_held_out(self.findings.records, data.held_out))
        else:
            used, kept = (len(side.numbers) for side in self.own.divided(data, torch.device("cpu")))
        return {
            "training": used,
            "held_out": kept,
            "left_out": self.findings.records - used - kept,
            "records_per_person": data.records_per_person,
        }

    def _sentences(self) -> list[str]:
        table = self.table
        return self.findings.sentences(table.path, table.row) if table else []

    def _described(self, columns: Sequence[Column], role: str) -> list[dict[str, Any]]:
        return [_described(column, self.findings.counts.get(column.name, Counts()), role) for column in columns]


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


def _only(declared: Declared, named: Callable[[str], str]) -> str:
    """Return what the site calls the target, if there is only one."""
    return named(declared.targets[0].name) if len(declared.targets) == 1 else ""


def _notices(task: Task, fitness: Fitness, table: Table | None) -> list[str]:
    """Return what does not keep the task from training, but may be a mistake."""
    if not fitness.clamped or task.target_range is None:
        return []
    low, high = task.target_range
    count, first = len(fitness.clamped), f"{table.row if table else 'record'} {fitness.clamped[0]}"
    which = f"the target of {first} is" if count == 1 else f"{count:,} targets, the first of {first}, are"
    return [f"{which} beyond target_range, {low:g} to {high:g}: evaluations over all sites take its nearer end instead"]


def _described(column: Column, counts: Counts, role: str) -> dict[str, Any]:
    return {
        "column": column.name,
        "role": role,
        "kind": _KINDS[type(column)],
        "range": column.described,
        "missing": counts.missing,
        "clipped": counts.clipped,
        "unknown": counts.unknown,
    }
