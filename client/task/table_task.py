"""A task over tables: it declares its columns, and the site's settings say where they are.

    class Readmission(TableTask):
        columns = [Number("age", low=18, high=100, missing=45), Category("ward", ["a", "b"], other="other")]
        target = Flag("readmitted")
        def model(self):                   return nn.Linear(self.width, 1)
        def loss(self, outputs, targets):  return F.binary_cross_entropy_with_logits(outputs, targets)

Columns become inputs `(n, width)` in their order: numbers and dates from -1 to 1, flags as 0 or 1, categories as one
number per value.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from client.data.columns import AnyColumn, Category, Date, Flag, Number, check_columns
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Declared, Findings, raise_first, read_tensors
from client.settings import read_site
from client.task.task import Task
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from client.data.inputs import Loaded

_FEWEST = 8  # made-up records


class TableTask(Task):
    """A task whose records are the rows of a table."""

    columns: ClassVar[Sequence[AnyColumn]]
    """The inputs."""

    target: ClassVar[AnyColumn | Sequence[AnyColumn]]
    """What to predict: a `Category`, as the places of its values `(n,)`; or flags and numbers, `(n, targets)`."""

    subgroups: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Columns of which an evaluation may compare the values: `{"ward": (), "age": (40, 65)}`. A `Category` and a `Flag`
    have their own values, `()`; a `Number` has bands between the cuts given."""

    person: ClassVar[str | None] = None
    """The column that says whom a record is about, where persons have several; it is no input."""

    def __init_subclass__(cls, **settings: Any) -> None:  # noqa: ANN401 - Python's
        """Check the declarations."""
        super().__init_subclass__(**settings)
        if hasattr(cls, "columns") and hasattr(cls, "target"):
            if not cls.columns:
                msg = "this task has no columns; declare at least one"
                raise TaskError(msg)
            check_columns((*cls.columns, *targets_of(cls.target)))
            if "target" in vars(cls):
                take_values(cls, targets_of(cls.target))

    @property
    def width(self) -> int:
        """The number of inputs of a record."""
        return sum(column.width for column in self.columns)

    @property
    def declared(self) -> Declared:
        """What the task declares of its table."""
        return Declared(self.columns, targets_of(self.target), self.person)

    @property
    @override
    def subgroup_values(self) -> dict[str, tuple[str, ...]]:
        return {name: bands(self._column(name)[0], cuts) for name, cuts in self.subgroups.items()}

    @override
    def subgroup_of(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        del targets
        places = {}
        for name, cuts in self.subgroups.items():
            column, start = self._column(name)
            places[name] = places_in(column, inputs[:, start : start + column.width], cuts)
        return places

    def _column(self, name: str) -> tuple[AnyColumn, int]:
        """Return a column and the place of its first input.

        Raises:
            TaskError: if there is none of that name.
        """
        start = 0
        for column in self.columns:
            if column.name == name:
                return column, start
            start += column.width
        msg = f"its subgroups name the column {name!r}, which there is not; name one of its columns"
        raise TaskError(msg)

    @override
    def load(self, path: Path) -> Loaded:
        return self.load_from(Source(path))

    @override
    def load_from(self, source: Source) -> Loaded:
        findings, table = Findings(), source.table()
        loaded = read_tensors(table, self.declared, findings)
        raise_first(table, findings)
        return (
            (loaded.inputs, loaded.targets)
            if loaded.persons is None
            else (loaded.inputs, loaded.targets, loaded.persons)
        )

    def inputs_of(self, path: Path, site: Path | None = None) -> Tensor:
        """Read new records, for a trained model to predict their target, which the table need not have.

        Args:
            path: the table.
            site: a site whose `site.toml` says how to read it; None: the file's suffix does.

        Returns:
            The inputs `(n, width)`, in the order of the table.

        Raises:
            DataError: if a record cannot be used.
            ConfigError: if the site's settings cannot be read.
        """
        place = read_site(site) if site else None
        source = Source(path, place.settings.data.source, place.folder) if place else Source(path)
        findings, table = Findings(), source.table()
        read = read_tensors(table, Declared(self.columns, ()), findings)
        raise_first(table, findings)
        return read.inputs

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        count = _FEWEST * max(1, *(column.width for column in (*self.columns, *self.declared.targets)))
        inputs = torch.cat([_made_up(column, count) for column in self.columns], 1)
        return inputs, made_up_targets(self.declared.targets, count)


def bands(column: AnyColumn, cuts: Sequence[float]) -> tuple[str, ...]:
    """Return the values of a column of subgroups.

    >>> bands(Number("age", low=18, high=100), (40, 65))
    ('below 40', '40 to below 65', '65 and above')

    Raises:
        TaskError: if the cuts do not suit the column.
    """
    if isinstance(column, Category) and not cuts:
        return column.places
    if isinstance(column, Flag) and not cuts:
        return "no", "yes"
    ascending = bool(cuts) and list(cuts) == sorted(set(cuts))
    if isinstance(column, Number) and ascending and column.low < cuts[0] and cuts[-1] <= column.high:
        between = [f"{low:g} to below {high:g}" for low, high in pairwise(cuts)]
        return f"below {cuts[0]:g}", *between, f"{cuts[-1]:g} and above"
    return column.refuse(
        f"cannot have the subgroups {tuple(cuts)!r}; give a Category or a Flag (), and a Number ascending cuts within "
        "its range"
    )


def places_in(column: AnyColumn, inputs: Tensor, cuts: Sequence[float]) -> Tensor:
    """Return the place of each record's value in `bands`, `(n,)`, from the column's inputs `(n, width)`."""
    if isinstance(column, Category):
        return inputs.argmax(1)
    if isinstance(column, Number):
        scaled = [2 * (cut - column.low) / (column.high - column.low) - 1 for cut in cuts]
        edges = torch.tensor(scaled, dtype=torch.float64).to(inputs)  # as values are scaled and rounded
        return torch.bucketize(inputs[:, 0].contiguous(), edges, right=True)
    return inputs[:, 0]


def targets_of(target: AnyColumn | Sequence[AnyColumn]) -> Sequence[AnyColumn]:
    """Return the columns to predict.

    Raises:
        TaskError: if these cannot be predicted together.
    """
    targets = (target,) if isinstance(target, Number | Category | Flag | Date) else target
    if not targets or any(isinstance(column, Date) for column in targets):
        msg = "the target of this task must be a Category, or Flags and Numbers"
        raise TaskError(msg)
    if len(targets) > 1 and any(isinstance(column, Category) for column in targets):
        msg = "a Category must be the only target of this task; declare a Flag for each of its values, or one target"
        raise TaskError(msg)
    return targets


def take_values(task: type[Task], targets: Sequence[AnyColumn]) -> None:
    """Let metrics of a task that predicts one `Number` be in its unit, unless the class says another."""
    if len(targets) != 1 or not isinstance(column := targets[0], Number) or task.scored is not Task.scored:
        return
    if "target_values" not in vars(task):
        task.target_values = (column.low + column.high) / 2, column.high
    if "target_range" not in vars(task):
        task.target_range = column.low, column.high


def made_up_targets(targets: Sequence[AnyColumn], count: int) -> Tensor:
    """Make up targets that cover every class."""
    if isinstance(targets[0], Category):
        return torch.arange(count) % targets[0].width
    return torch.cat([_made_up(column, count) for column in targets], 1)


def _made_up(column: AnyColumn, count: int) -> Tensor:
    """Make up values of a column `(count, width)`, as inputs: every category and both flags, any number."""
    match column:
        case Category():
            return functional.one_hot(torch.randperm(count) % column.width, column.width).float()
        case Flag():
            return torch.arange(float(count)).remainder(2)[:, None]
    return torch.rand(count, 1) * 2 - 1
