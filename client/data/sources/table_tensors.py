"""Turn tables into tensors by the columns that a task declares, and count what was missing, clipped or unknown.

Every record is computed by itself, from its own row and public constants. A row that cannot be used is a `Problem`;
reading goes on, so that `cloister data check` can show them all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute

from client.data.columns import AnyColumn, Category, Date, Flag, Number
from client.data.sources.arrays import floats, is_plain, is_text, kind_of, mask, plain_numbers, words_of
from client.data.sources.chunks import Problem
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from client.data.sources.chunks import Chunk, Table
    from client.data.sources.options import ListedOptions, TableOptions

pc: Any = compute  # it makes its functions when it is imported, unseen by type checkers

_NUMBER = r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
_COMMA = r"^[+-]?[0-9]+,[0-9]+$"
_WHOLE = r"^([+-]?[0-9]+)\.0+$"
_LONGEST = 1000  # bytes of a cell
_KEPT, _SHOWN = 100, 3  # kinds of problems; rows of each
_EPOCH = date(1970, 1, 1)


@dataclass
class Counts:
    """How many values of a column were replaced, or put elsewhere."""

    missing: int = 0  # by the constant for missing ones
    clipped: int = 0  # by an end of the range
    unknown: int = 0  # counted as other


@dataclass
class Findings:
    """What was found in a site's records. It stays at the site, and is written nowhere."""

    records: int = 0  # that can be used
    counts: dict[str, Counts] = field(default_factory=dict)
    problem_count: int = 0
    kinds: dict[tuple[str | None, str], list[int]] = field(default_factory=dict)
    """By column and text: how many rows have the problem, then the first of them. In the order of the first rows."""

    def add(self, problems: Sequence[Problem]) -> None:
        """Count problems of different rows, in their order."""
        self.problem_count += len(problems)
        for problem in problems:
            kind = problem.column, problem.text
            if kind in self.kinds or len(self.kinds) < _KEPT:
                rows = self.kinds.setdefault(kind, [0])
                rows[0] += 1
                if len(rows) <= _SHOWN:
                    rows.append(problem.row)

    def sentences(self, path: Path, row: str) -> list[str]:
        """Return a sentence for each kind of problem; `row` is what the source calls a row."""
        return [
            Problem(first, column, text).sentence(path, row, count, rest)
            for (column, text), (count, first, *rest) in self.kinds.items()
        ]


@dataclass(frozen=True)
class Declared:
    """What a task declares of a table."""

    columns: Sequence[AnyColumn]  # of the inputs
    targets: Sequence[AnyColumn]  # to predict: one `Category`, or any number of `Number` and `Flag`; may be none
    person: str | None = None  # the column that says whom a record is about

    @property
    def wanted(self) -> dict[str, str | None]:
        """The names of all columns, with their codes."""
        person = {self.person: None} if self.person else {}
        return person | {column.name: column.code for column in (*self.columns, *self.targets)}


@dataclass(frozen=True)
class TableRecords:
    """The records of a table that can be used; n may be 0."""

    inputs: Tensor  # (n, width), float32
    targets: Tensor  # the places of a `Category`'s values `(n,)`, int64, or float32 `(n, targets)`
    rows: list[int]  # their numbers
    persons: list[str] | None  # whom they are about, if the task names a column for it


def read_tensors(
    table: Table, declared: Declared, findings: Findings, progress: Callable[[int], None] = lambda _: None
) -> TableRecords:
    """Read the records of a table that can be used; `findings` has the others.

    Args:
        table: the source.
        declared: what the task declares.
        findings: is added to.
        progress: is told the number of rows read so far.

    Raises:
        DataError: if the table cannot be read.
    """
    encoder = Encoder(table.options, findings)
    inputs, outputs, rows, persons, read = list[Any](), list[Any](), list[int](), list[str](), 0
    for chunk in table.chunks(declared.wanted):
        read += len(chunk.rows) + len(chunk.problems)
        usable, problems = np.ones(len(chunk.rows), bool), list(chunk.problems)
        parts = [np.zeros((len(chunk.rows), 0), np.float32)]
        parts += [encoder.inputs(column, chunk, usable, problems) for column in declared.columns]
        labels = [encoder.target(column, chunk, usable, problems) for column in declared.targets] or parts[:1]
        named = encoder.texts(declared.person, chunk, usable, problems) if declared.person else []
        findings.add(sorted(problems, key=lambda problem: problem.row))
        inputs.append(np.concatenate(parts, axis=1)[usable])
        outputs.append((labels[0] if labels[0].ndim == 1 else np.concatenate(labels, axis=1))[usable])
        rows += np.asarray(chunk.rows)[usable].tolist()
        persons += [text for text, use in zip(named, usable, strict=bool(named)) if use]
        progress(read)
    if not read:
        table.fail(*table.nothing)
    findings.records += len(rows)
    return TableRecords(
        torch.from_numpy(np.concatenate(inputs)),
        torch.from_numpy(np.concatenate(outputs)),
        rows,
        persons if declared.person else None,
    )


def raise_first(table: Table, findings: Findings) -> None:
    """Raise the first problem.

    Raises:
        DataError: if there is any.
    """
    for (column, text), (_, first, *_) in findings.kinds.items():
        more = findings.problem_count - 1
        rest = f" ({more:,} more; `cloister data check` lists them)" if more else ""
        raise DataError(Problem(first, column, text).sentence(table.path, table.row) + rest)


class Encoder:
    """Computes numbers from a chunk's columns; a value that cannot be used makes its row unusable."""

    def __init__(self, options: TableOptions | ListedOptions, findings: Findings) -> None:
        self._options, self._findings = options, findings
        self._decimal = getattr(options, "decimal", ".")
        self._missing = pa.array(options.missing, pa.string())

    def inputs(
        self, column: AnyColumn, chunk: Chunk, usable: NDArray[np.bool_], problems: list[Problem]
    ) -> NDArray[np.float32]:
        """Return a column as inputs `(n, width)`; unusable rows are cleared in `usable` `(n,)`."""
        values = self._values(column, chunk, usable, problems)
        if isinstance(column, Category):
            return np.eye(column.width, dtype=np.float32)[values.astype(np.int64)]
        return values.astype(np.float32)[:, None]

    def target(
        self, column: AnyColumn, chunk: Chunk, usable: NDArray[np.bool_], problems: list[Problem]
    ) -> NDArray[Any]:
        """Return a column as targets: places `(n,)` of a category's values, else float32 `(n, 1)`."""
        values = self._values(column, chunk, usable, problems)
        return values.astype(np.int64) if isinstance(column, Category) else values.astype(np.float32)[:, None]

    def texts(self, name: str, chunk: Chunk, usable: NDArray[np.bool_], problems: list[Problem]) -> list[str]:
        """Return what a column names, such as persons, `(n,)`; a row without a name becomes unusable."""
        work = _Work(chunk, usable, problems, self._options.columns.get(name, name))
        array = self._trimmed(chunk.columns[name], work)
        if not is_plain(array.type):
            work.refuse(np.ones(len(array), bool), f"not a name but {kind_of(array.type)}; convert the column")
            return [""] * len(array)
        words = self._without_missing(words_of(array))
        work.refuse(mask(pc.is_null(words)), "no name of a person; fill it in, or leave the record out")
        strings: list[str] = pc.fill_null(words, "").to_pylist()
        return strings

    def _values(
        self, column: AnyColumn, chunk: Chunk, usable: NDArray[np.bool_], problems: list[Problem]
    ) -> NDArray[np.float64]:
        work = _Work(chunk, usable, problems, self._options.columns.get(column.name, column.name))
        counts = self._findings.counts.setdefault(column.name, Counts())
        array = self._trimmed(chunk.columns[column.name], work)
        match column:
            case Number():
                values = self._numbers(column, array, work)
            case Date():
                values = self._days(array, work)
            case _:
                values = self._places(column, array, work, counts)
        absent = np.isnan(values)
        stand_in = _stand_in(column)
        if stand_in is None:
            work.refuse(absent, "no value; fill it in, or leave the record out")
        counts.missing += int((absent & ~work.refused).sum())
        values = np.where(absent, 0.0 if stand_in is None else stand_in, values)
        if isinstance(column, Number | Date):
            low, high = (_plain(end) for end in (column.low, column.high))
            counts.clipped += int(((values < low) | (values > high))[~work.refused].sum())
            values = 2 * (np.clip(values, low, high) - low) / (high - low) - 1
        return values

    def _trimmed(self, array: Any, work: _Work) -> Any:  # noqa: ANN401 - of PyArrow, which has no types
        """Look up what a dictionary encodes, remove spaces around texts, and refuse long ones."""
        array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
        if not is_text(array.type):
            return array
        array = pc.cast(array, pa.string())
        long = mask(pc.greater(pc.binary_length(array), _LONGEST))
        if long.any():
            work.refuse(long, f"more than {_LONGEST:,} bytes long; correct the cell")
            array = pc.if_else(pa.array(long), pa.scalar(None, array.type), array)
        return pc.utf8_trim_whitespace(array)

    def _numbers(self, column: Number, array: Any, work: _Work) -> NDArray[np.float64]:  # noqa: ANN401
        kind = array.type
        if is_text(kind):
            array = self._pointed(self._without_missing(array), work)
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)) and not (
            pa.types.is_boolean(kind) or pa.types.is_null(kind)
        ):
            work.refuse(np.ones(len(array), bool), f"not a number but {kind_of(kind)}; convert the column")
            return np.zeros(len(array))
        values = floats(array)
        work.refuse(np.isinf(values), "not finite; write the measured value, or leave the record out")
        return np.where(np.isinf(values), 0.0, values) * self._factors(column, work, ~np.isnan(values))

    def _without_missing(self, array: Any) -> Any:  # noqa: ANN401
        return pc.if_else(pc.is_in(array, self._missing), pa.scalar(None, pa.string()), array)

    def _pointed(self, array: Any, work: _Work) -> Any:  # noqa: ANN401
        """Refuse texts that are no numbers; return the others with a decimal point, or as numbers."""
        comma = self._decimal == ","
        if not comma and (plain := plain_numbers(array)) is not None:
            return plain
        pointed = pc.replace_substring(array, ",", ".") if comma else array
        wrong = ~mask(pc.match_substring_regex(pointed, _NUMBER), absent=True)
        if comma:
            wrong |= (points := mask(pc.match_substring(array, ".")))
            work.refuse(points, 'a point in a number, where decimal = ","; write numbers without points')
        else:
            commas = mask(pc.match_substring_regex(array, _COMMA))
            work.refuse(commas, f"a comma in a number; write it as 1234.5, {self._of_commas()}")
        advice = "write it as 1234.5, or name it in missing of [data.source] if it stands for a missing value"
        work.refuse(wrong, f"not a number; {advice}")
        return pc.if_else(pa.array(wrong), pa.scalar("0", array.type), pointed)

    def _of_commas(self) -> str:
        """Return what else the source allows if all commas are decimal ones."""
        if hasattr(self._options, "decimal"):
            return 'or set decimal = "," in [data.source] if all commas are decimal ones'
        where = {"parquet": "write the column as numbers", "sql": "make numbers of the column in the query"}
        return f"or {where.get(self._options.name, 'convert it at its source')} if all commas are decimal ones"

    def _factors(self, column: Number, work: _Work, present: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return what to multiply each value by, so that it has the column's unit."""
        own = self._options.units.get(column.name)
        if column.name not in work.chunk.units and (factor := column.factor(own)) is not None:
            return np.full(len(present), factor)
        units = [unit or own for unit in work.chunk.units.get(column.name, [None] * len(present))]
        known = {unit: column.factor(unit) for unit in set(units)}
        wrong = np.array([known[unit] is None for unit in units], bool) & present
        declared = ", ".join([column.unit or "(none)", *column.convert])
        work.refuse(wrong, f"in a unit that the task does not declare; it declares {declared}")
        return np.array([known[unit] or 1.0 for unit in units])

    def _days(self, array: Any, work: _Work) -> NDArray[np.float64]:  # noqa: ANN401
        kind = array.type
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            return floats(pc.cast(pc.cast(array, pa.date32(), safe=False), pa.int32()))
        if pa.types.is_null(kind):
            return np.full(len(array), np.nan)
        if not is_text(kind):
            work.refuse(np.ones(len(array), bool), f"not a date but {kind_of(kind)}; convert the column")
            return np.zeros(len(array))
        coded = pc.dictionary_encode(self._without_missing(array))
        days = np.array([self._day(text) for text in coded.dictionary.to_pylist()] or [0.0])
        places = floats(coded.indices)
        values = np.where(np.isnan(places), np.nan, days[np.nan_to_num(places).astype(np.int64)])
        expected = "2024-12-31" if self._options.dates == "iso" else self._options.dates
        work.refuse(np.isinf(values), f"not a date written as {expected}; correct it, or set dates in [data.source]")
        return np.where(np.isinf(values), 0.0, values)

    def _day(self, text: str) -> float:
        """Return the days since 1970 of a date; infinity if it is none."""
        try:
            if self._options.dates == "iso":
                moment = datetime.fromisoformat(text)
            else:
                moment = datetime.strptime(text, self._options.dates)  # noqa: DTZ007 - only the day is used
        except ValueError:
            return np.inf
        return _plain(moment.date())

    def _places(self, column: Category | Flag, array: Any, work: _Work, counts: Counts) -> NDArray[np.float64]:  # noqa: ANN401
        """Return the place of each value in the column's list; of a flag, 1 or 0."""
        if not is_plain(array.type):
            work.refuse(np.ones(len(array), bool), f"not a text but {kind_of(array.type)}; convert the column")
            return np.zeros(len(array))
        words = words_of(array)
        if isinstance(column, Flag):
            words = pc.utf8_lower(words)
            known = [normalize("NFC", word.lower()) for word in (*column.no, *column.yes)]
        else:
            known = [normalize("NFC", value) for value in column.values]
        whole = pc.replace_substring_regex(words, _WHOLE, r"\1")  # 1 for 1.0, as tools write codes with gaps
        places = floats(pc.coalesce(*(pc.index_in(each, pa.array(known, words.type)) for each in (words, whole))))
        absent = mask(
            pc.or_(pc.is_null(words), pc.fill_null(pc.is_in(words_of(array), self._missing), fill_value=True))
        )
        unknown = np.isnan(places) & ~absent
        if isinstance(column, Flag):
            places = np.where(np.isnan(places), np.nan, places >= len(column.no))
            yes, no = _shortened(column.yes), _shortened(column.no)
            work.refuse(unknown, f"neither yes ({yes}) nor no ({no}); correct it, or the task's words")
        elif column.other == "other":
            counts.unknown += int((unknown & ~work.refused).sum())
            return np.where(unknown, len(known), places)
        else:
            work.refuse(unknown, f"none of the task's {len(known)} values ({_shortened(known)}); correct it")
        return np.where(unknown, 0.0, places)


@dataclass
class _Work:
    """The rows of one column in a chunk, and which of them cannot be used."""

    chunk: Chunk
    usable: NDArray[np.bool_]  # rows of the chunk, over all columns
    problems: list[Problem]
    named: str  # what the site calls the column
    refused: NDArray[np.bool_] = field(init=False)  # rows of this column

    def __post_init__(self) -> None:
        self.refused = np.zeros(len(self.usable), bool)

    def refuse(self, rows: NDArray[np.bool_], text: str) -> None:
        """Refuse rows that this column has not refused yet."""
        for at in np.flatnonzero(rows & ~self.refused):
            self.problems.append(Problem(int(self.chunk.rows[int(at)]), self.named, text))
        self.refused |= rows
        self.usable &= ~rows


def _stand_in(column: AnyColumn) -> float | None:
    """Return the number that stands for a missing value."""
    if column.missing is None:
        return None
    if isinstance(column, Category):
        return float(column.places.index(column.missing))
    return _plain(column.missing) if isinstance(column, Number | Date) else float(column.missing)


def _plain(value: float | date) -> float:
    """Return a date as days since 1970."""
    return float((value - _EPOCH).days) if isinstance(value, date) else float(value)


def _shortened(values: Sequence[str]) -> str:
    return ", ".join(values) if len(values) <= 4 else f"{', '.join(values[:3])}, …"  # noqa: PLR2004
