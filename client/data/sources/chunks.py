"""What a source of tables yields: rows of the wanted columns, some thousands at a time, and what is wrong with them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa

from privacy.config import did_you_mean
from privacy.errors import DataError
from privacy.untrusted_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from client.data.sources.options import ListedOptions, TableOptions


@dataclass(frozen=True)
class Problem:
    """Something that a record cannot be used with. It never shows a value."""

    row: int
    column: str | None  # as the site calls it; None: the row as a whole
    text: str  # and what to do

    def sentence(self, path: Path, row: str, count: int = 1, further: Sequence[int] = ()) -> str:
        """Return the whole sentence.

        Args:
            path: the file of records.
            row: what the source calls a row.
            count: how many rows have this problem.
            further: some of the others.
        """
        column = f", column `{self.column}`" if self.column else ""
        if count == 1:
            return f"{path}, {row} {self.row}{column}: {self.text}"
        rows = ", ".join(map(str, (self.row, *further, *(["…"] if count > 1 + len(further) else []))))
        return f"{path}, {count:,} {row}s ({rows}){column}: {self.text}"


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table."""

    columns: Mapping[str, Any]  # pyarrow arrays, by the task's names of the columns
    rows: Sequence[int]  # their numbers, for messages
    problems: Sequence[Problem] = ()  # rows that could not be read at all, and are in no column
    units: Mapping[str, Sequence[str | None]] = field(default_factory=dict)  # of each value, where the source says so


def array_of(values: Sequence[Any]) -> Any:  # noqa: ANN401 - of PyArrow, which has no types
    """Return Python values as one array; of mixed types, as texts.

    A text means the same as the value itself: what other rows have must not change what a row becomes.
    """
    with suppress(pa.ArrowException, OverflowError, ValueError, TypeError):
        array = pa.array(values)
        if not (pa.types.is_binary(array.type) and any(isinstance(value, str) for value in values)):
            return array
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: object) -> str | None:
    if value is None or (isinstance(value, float | Decimal) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # A structure, or bytes, where a table has a value becomes a text that no column takes.
    return "?" if isinstance(value, dict | list | bytes) else str(value)


class Table(ABC):
    """A source of tables.

    Attributes:
        path: what messages name: the file that `site.toml` names.
        options: the source's options.
        row: what this source calls a row.
        nothing: what to say if there is none, and what to do.
    """

    row = "row"
    nothing = ("it has columns, but no rows", "add one row per record, or name another")

    def __init__(self, path: Path, options: TableOptions | ListedOptions) -> None:
        self.path, self.options = path, options

    @abstractmethod
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        """Read the wanted columns, always in the same order of rows.

        Args:
            wanted: the task's names of columns, each with its code, where the task declares one.

        Raises:
            DataError: if the source cannot be read, or lacks a column.
        """

    def named(self, column: str) -> str:
        """Return what the site calls a column of the task."""
        return self.options.columns.get(column, column)

    def places(self, wanted: Mapping[str, str | None], names: Sequence[str]) -> dict[str, int]:
        """Return the place of each wanted column among the table's own.

        Raises:
            DataError: if a column is missing, or two have the same name; those without a name are passed over.
        """
        if not any(names):
            self.fail("it has no columns", "name one with the task's columns, and one row per record")
        twice = next((number for number, name in enumerate(names, 1) if name and names.index(name) < number - 1), 0)
        if twice:
            first = names.index(names[twice - 1]) + 1
            self.fail(f"columns {first} and {twice} have the same name", "rename or remove one of them")
        for column in wanted:
            if self.named(column) not in names:
                advice = "add it, or say in [data.source.columns] of site.toml what it is called here"
                # Other names may be for columns of the site's other tasks.
                if column not in self.options.columns and (near := did_you_mean(column, self.options.columns)):
                    advice = f"of the names in [data.source.columns], {near}"
                elif near := did_you_mean(self.named(column), map(plain, names)):
                    advice = f"{near} If so, correct it, or set columns in [data.source]"
                self.fail(f"there is no column `{self.named(column)}`", advice)
        return {column: names.index(self.named(column)) for column in wanted}

    def fail(self, problem: str, advice: str) -> NoReturn:
        """Refuse the whole source.

        Raises:
            DataError: with these words.
        """
        msg = f"{self.path}: {problem}; {advice}"
        raise DataError(msg)
