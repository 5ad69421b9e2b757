"""Read a site's own records from a CSV file into arrays.

Unusable data is a hospital's most common problem, and only the hospital can see it: a site's records stay at the site,
and so does the text of a `DataError`. So every error shows the line.

    patients.csv:7: `mean_radius` is not a number
        842302,high,10.38,122.8
               ^^^^
    write a decimal number, or remove the line

The dialect is RFC 4180 without line breaks inside quotes, so that an unclosed quote spoils one line, not the file.

PyArrow reads the file in blocks. A block in which it finds anything but plain numbers is read again here, line by line,
which is slow: it accepts other valid forms, and shows the first error.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import csv

from privacy.errors import DataError
from privacy.storage import open_file

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

_FIELD = re.compile(r'(?:[ \t]*"(?P<quoted>[^"]*(?:""[^"]*)*)"[ \t]*|(?P<bare>[^",]*))(?P<comma>,|\Z)')
# The look-behind follows the first quote, because patterns that begin with a literal character are fastest.
_QUOTED = re.compile(rb'"(?<![^,\r\n]")[^"\r\n]*(?:""[^"\r\n]*)*"[ \t]*(?![^,\r\n])')
_LINE_END = re.compile(rb"\r\n|\r|\n")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() would accept 1_000
_NOT_FINITE = {"nan", "inf", "infinity"}
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 76  # characters of an offending line
_BLOCK = 1 << 20  # bytes at a time: larger blocks do not fit in the processor's cache


def read_csv(
    path: Path, *, features: Sequence[str], target: str, classes: Collection[float] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read named columns of numbers from a CSV file whose first line names its columns.

    The file may have other columns with any content; blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        features: the columns of the inputs, in the order that the model expects.
        target: the column to predict.
        classes: the only values allowed for the target; None allows any number.

    Returns:
        Inputs `(n, len(features))` and targets `(n,)`, in the order of the file; n is at least 1.

    Raises:
        DataError: at the first error; shows the place, and says what to do.
    """
    blocks = _blocks(path)
    header, rest = _cut_header(path, blocks)
    columns = _Columns.of(header, [*features, target], classes)
    table = np.concatenate([columns.read(block) for block in chain([rest], blocks)])
    if not len(table):
        raise header.error((0, len(header.text)), "no records follow the header", "add one line per record below it")
    return table[:, :-1], table[:, -1]


@dataclass(frozen=True)
class _Field:
    """One field of a line: its text, and its span of characters."""

    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class _Line:
    """One line of a file."""

    path: Path
    number: int  # from 1
    text: str

    def fields(self) -> list[_Field]:
        """Split the line at its commas."""
        fields: list[_Field] = []
        at = 0
        while match := _FIELD.match(self.text, at):
            quoted = match["quoted"]
            text = match["bare"] if quoted is None else quoted.replace('""', '"')
            fields.append(_Field(text.strip(), (at, match.start("comma"))))
            at = match.end()
            if not match["comma"]:
                return fields
        message = "a quote is inside a field, or is not closed on its line"
        advice = 'put the whole field in quotes, and write "" for a quote inside it'
        raise self.error((at, len(self.text)), message, advice)

    def error(self, span: tuple[int, int], message: str, advice: str) -> DataError:
        """Make an error that points at the characters from `span[0]` up to, but not including, `span[1]`."""
        start, stop = span
        left = max(0, min(start - _SHOWN // 2, len(self.text) - _SHOWN))
        # Control characters could drive the terminal; one dot for each keeps the carets in place.
        excerpt = "".join(c if c.isprintable() else "·" for c in self.text[left : left + _SHOWN])
        carets = " " * (start - left) + "^" * max(1, min(stop, left + _SHOWN) - start)
        return DataError(f"{self.path}:{self.number}: {message}\n    {excerpt}\n    {carets}\n{advice}")


@dataclass(frozen=True)
class _Block:
    """Whole lines of a file."""

    path: Path
    number: int  # of the first line
    data: bytes

    def lines(self) -> list[_Line]:
        """Return the lines that are not blank.

        Raises:
            DataError: if they are not UTF-8.
        """
        texts = [data.decode(errors="replace") for data in _LINE_END.split(self.data)]
        lines = [_Line(self.path, number, text) for number, text in enumerate(texts, self.number)]
        try:
            self.data.decode()
        except UnicodeDecodeError as error:
            *before, start = _LINE_END.split(self.data[: error.start])
            at = len(start.decode())
            raise lines[len(before)].error((at, at + 1), "not UTF-8 text", "save the file as UTF-8") from error
        return [line for line in lines if line.text.strip()]

    def after(self, line: _Line) -> _Block:
        """Return the lines after the given one."""
        count = line.number - self.number + 1
        return _Block(self.path, line.number + 1, b"".join(_LINE_END.split(self.data, maxsplit=count)[count:]))


def _blocks(path: Path) -> Iterator[_Block]:
    """Read a file in blocks of whole lines.

    Raises:
        DataError: if it cannot be read.
    """
    number, data = 1, b""
    try:
        with open_file(path) as file:
            file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
            while more := file.read(max(_BLOCK, len(data))):
                data += more
                # Do not cut after a final \r: a \n may follow.
                end = 1 + max(data.rfind(b"\n"), data.rfind(b"\r", 0, -1))
                if end:
                    yield _Block(path, number, data[:end])
                    number += data.count(b"\n", 0, end) + data.count(b"\r", 0, end) - data.count(b"\r\n", 0, end)
                    data = data[end:]
    except OSError as error:
        msg = f"{path}: {error.strerror or error}; name a CSV file that this account can read"
        raise DataError(msg) from error
    if data:
        yield _Block(path, number, data)


def _cut_header(path: Path, blocks: Iterator[_Block]) -> tuple[_Line, _Block]:
    """Return the first line that is not blank, and the rest of its block."""
    for block in blocks:
        for line in block.lines()[:1]:
            return line, block.after(line)
    raise _Line(path, 1, "").error((0, 1), "the file is empty", "name a file with a header and one line per record")


@dataclass(frozen=True)
class _Columns:
    """The columns of a file, and those that are wanted."""

    names: list[str]
    wanted: list[int]  # places of the features, then of the target
    classes: Collection[float] | None

    @classmethod
    def of(cls, header: _Line, wanted: list[str], classes: Collection[float] | None) -> Self:
        """Find the columns.

        Raises:
            DataError: if a column is missing, or two have the same name.
        """
        places: dict[str, int] = {}
        for place, field in enumerate(header.fields()):
            if field.text in places:
                raise header.error(field.span, "an earlier column has the same name", "rename or remove one of them")
            places[field.text] = place
        for name in wanted:
            if name not in places:
                end = (len(header.text), len(header.text) + 1)
                advice = "add it, or correct its name in the header; columns are separated by commas"
                raise header.error(end, f"there is no column `{name}`", advice)
        return cls(list(places), [places[name] for name in wanted], classes)

    def read(self, block: _Block) -> NDArray[np.float32]:
        """Return a block's values in the wanted columns, `(n, wanted)`.

        Raises:
            DataError: at the first error.
        """
        values = self.read_plain(block)
        return (self.read_lines(block) if values is None else values).astype(np.float32)

    def read_plain(self, block: _Block) -> NDArray[np.float64] | None:
        """Return the same as `read_lines`, much faster; None if the block may hold an error."""
        if b'"' in _QUOTED.sub(b"", block.data):
            return None
        names = [self.names[place] for place in self.wanted]
        try:
            block.data.decode()
            table = csv.read_csv(
                pa.BufferReader(block.data),
                csv.ReadOptions(column_names=self.names, use_threads=False, block_size=len(block.data) + 1),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.float64()), include_columns=list(set(names)), null_values=[]
                ),
            )
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        values = np.column_stack([table[name].to_numpy() for name in names])
        if not (np.abs(values) <= _LARGEST).all():  # NaN fails too
            return None
        if self.classes is not None and not np.isin(values[:, -1], list(self.classes)).all():
            return None
        return values

    def read_lines(self, block: _Block) -> NDArray[np.float64]:
        """Return a block's values in the wanted columns, `(n, wanted)`, read line by line.

        Raises:
            DataError: at the first error.
        """
        rows = [self._row(line) for line in block.lines()]
        return np.array(rows, np.float64).reshape(len(rows), len(self.wanted))

    def _row(self, line: _Line) -> list[float]:
        fields = line.fields()
        if len(fields) != len(self.names):
            surplus = fields[len(self.names)].span[0] if len(fields) > len(self.names) else len(line.text)
            message = f"{len(fields)} fields where the header names {len(self.names)} columns"
            advice = "match the header: put a field with a comma in quotes, and write decimal numbers with a point"
            raise line.error((surplus, len(line.text)), message, advice)
        row = [_number(line, fields[place], self.names[place]) for place in self.wanted]
        if self.classes is not None and row[-1] not in self.classes:
            target = self.wanted[-1]
            advice = f"write {' or '.join(f'{value:g}' for value in self.classes)}"
            message = f"`{self.names[target]}` is {row[-1]:g}, which is not a class"
            raise line.error(fields[target].span, message, advice)
        return row


def _number(line: _Line, field: _Field, column: str) -> float:
    """Read one field as a number that float32 can hold."""
    if not field.text:
        raise line.error(field.span, f"`{column}` is missing", "fill it in, or remove the line")
    if field.text.lstrip("+-").lower() in _NOT_FINITE:
        raise line.error(field.span, f"`{column}` is not finite", "write the measured value, or remove the line")
    if not _NUMBER.fullmatch(field.text):
        raise line.error(field.span, f"`{column}` is not a number", "write a decimal number, or remove the line")
    value = float(field.text)
    if abs(value) > _LARGEST:
        raise line.error(
            field.span, f"`{column}` is too large", f"write a number below {_LARGEST:.1e}, or remove the line"
        )
    return value
