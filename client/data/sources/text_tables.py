"""Tables in text files: CSV in the dialects that spreadsheets write.

The dialect is RFC 4180. Lines are joined where a cell in quotes goes over several, if they make a row; so an unclosed
quote spoils one line, not the file. PyArrow splits blocks of whole rows; a block with anything odd in it is split again
row by row, which is slow, and finds the rows that cannot be used.
"""

from __future__ import annotations

import codecs
import csv
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
from pyarrow import csv as arrow_csv
from typing_extensions import override

from client.data.sources.chunks import Chunk, Problem, Table
from privacy.failures import reason
from privacy.storage import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from client.data.sources.options import Csv, ListedOptions

_BLOCK = 1 << 20  # bytes at a time
_LONGEST = 1 << 20  # characters of a row
_MOST_LINES = 1000  # of a row
_OTHER_KINDS = {
    b"PK\3\4": ("a spreadsheet, or another zip archive", "save its table as CSV"),
    b"\xd0\xcf\x11\xe0": ("a spreadsheet or document", "save its table as CSV"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it"),
    b"PAR1\x15": ("a Parquet file", 'set name = "parquet" in [data.source]'),
    b"SQLite format 3\0": ("a SQLite database", 'set name = "sql" in [data.source]'),
    b"%PDF-": ("a PDF document", "save its table as CSV"),
}
"""By the first bytes of files that are often taken for text: what they are, and what to do."""
_FOR_EXCEL = re.compile(r'"?sep=."?')  # a first line that tells Excel the separator
_LINE_END = re.compile(r"\r\n|\r|\n")


class TextTable(Table):
    """A text file whose first line names its columns."""

    row = "line"
    nothing = ("no records follow the line that names the columns", "add one line per record")
    what = "a text file"
    options: Csv | ListedOptions

    def __init__(self, path: Path, options: Csv | ListedOptions) -> None:
        super().__init__(path, options)
        self.options = options

    @override
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        blocks = self._blocks()
        names, first = self._header(blocks)
        if len(names) == 1 and (used := next((mark for mark in ";,\t|" if mark in names[0]), None)):
            self.fail("its first line names one column", f"set separator = {_toml(used)} in [data.source]")
        places = self.places(wanted, names)
        for rows in self._rows(chain([first], blocks), len(names)):
            numbers = [number for number, row in rows if row.strip()]
            if numbers:
                yield self._chunk(numbers, [row for _, row in rows if row.strip()], places, len(names))

    def _rows(self, blocks: Iterable[tuple[int, list[str]]], count: int) -> Iterator[list[tuple[int, str]]]:
        """Join the lines of rows of `count` cells; yield rows, each with the number of its first line."""
        held = list[tuple[int, str]]()
        for number, lines in blocks:
            held += enumerate(lines, number)
            rows, held = self._joined(held, count, more=True)
            yield rows
        yield self._joined(held, count, more=False)[0]

    def _joined(
        self, lines: list[tuple[int, str]], count: int, *, more: bool
    ) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
        """Return the rows of some lines, and the last lines if it depends on `more` of them what row they are."""
        if not any(_opens(line) for _, line in lines):
            return lines, []
        rows, at = list[tuple[int, str]](), 0
        while at < len(lines):
            number, line = lines[at]
            if _opens(line):
                row = self._over_several(lines[at : at + _MOST_LINES], count)
                if row is None and more and len(lines) - at < _MOST_LINES:
                    return rows, lines[at:]
                line = row or line
            rows.append((number, line))
            at += 1 + line.count("\n")
        return rows, []

    def _over_several(self, lines: list[tuple[int, str]], count: int) -> str | None:
        """Join lines, of which the first opens a quote, up to that which closes it.

        Returns:
            The row, or the first line alone if they make none of `count` cells; None if no line closes the quote.
        """
        row = lines[0][1]
        for _, line in lines[1:]:
            row = f"{row}\n{line}"
            if len(row) > _LONGEST:
                break
            if _opens(line):  # closes
                fields = self._fields(row)
                return row if fields is not None and len(fields) == count else lines[0][1]
        else:
            return None
        return lines[0][1]

    def _chunk(self, numbers: list[int], lines: list[str], places: Mapping[str, int], count: int) -> Chunk:
        table = self._plain(lines, count)
        if table is not None:
            return Chunk({name: table[place] for name, place in places.items()}, numbers)
        cells, rows, problems = list[list[str]](), list[int](), list[Problem]()
        for number, line in zip(numbers, lines, strict=True):
            fields = self._fields(line)
            if fields is None:
                advice = 'put the whole cell in quotes, and write "" for a quote inside it'
                text = "a quote is inside a cell, or is not closed"
                problems.append(Problem(number, None, f"{text}; {advice}"))
            elif len(fields) != count:
                text = f"{len(fields)} cells where the first line names {count} columns"
                problems.append(Problem(number, None, f"{text}; put a cell with the separator inside in quotes"))
            else:
                cells.append([fields[place] for place in places.values()])
                rows.append(number)
        columns = [pa.array([row[at] for row in cells], pa.string()) for at in range(len(places))]
        return Chunk(dict(zip(places, columns, strict=True)), rows, problems)

    def _plain(self, lines: Sequence[str], count: int) -> list[Any] | None:
        """Split lines by PyArrow, if each is one row of `count` cells; else None."""
        names, text = [str(place) for place in range(count)], "\n".join(lines)
        if '"' in text and '"' in _quoted(self.options.separator).sub("", text):
            return None
        try:
            data = text.encode()
            table = arrow_csv.read_csv(
                pa.BufferReader(data),
                arrow_csv.ReadOptions(column_names=names, use_threads=False, block_size=len(data) + 1),
                arrow_csv.ParseOptions(delimiter=self.options.separator),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, null_values=[]
                ),
            )
        except (pa.ArrowInvalid, UnicodeEncodeError):
            return None
        if table.num_rows != len(lines):  # an unclosed quote has swallowed some
            return None
        return [table[name].combine_chunks() for name in names]

    def _fields(self, line: str) -> list[str] | None:
        """Split a line; None if a quote is not closed."""
        try:
            return next(csv.reader([line], delimiter=self.options.separator, strict=True))
        except csv.Error:
            return None

    def _header(self, blocks: Iterator[tuple[int, list[str]]]) -> tuple[list[str], tuple[int, list[str]]]:
        """Return the names of the columns, and the rest of their block."""
        start = ((number, at, lines) for number, lines in blocks for at, line in enumerate(lines)
                 if line.strip() and not _FOR_EXCEL.fullmatch(line.strip()))  # fmt: skip
        first = next(start, None)
        if first is None:
            self.fail("the file is empty", "name a file with the columns' names and one line per record")
        number, at, lines = first
        names = self._fields(lines[at])
        if names is None:
            self.fail(f"a quote is not closed on line {number + at}", "correct it")
        if "\0" in lines[at]:
            self.fail(
                "its first line has null characters", 'if it is such text, set encoding = "utf-16" in [data.source]'
            )
        return [name.strip() for name in names], (number + at + 1, lines[at + 1 :])

    def _blocks(self) -> Iterator[tuple[int, list[str]]]:
        """Read whole lines, with the number of the first.

        Raises:
            DataError: if the file cannot be read, is not text in this encoding, or has a line without end.
        """
        number, rest, ended = 1, "", False
        try:
            with open_file(self.path) as file:
                start = file.read(16)
                for mark, (kind, advice) in _OTHER_KINDS.items():
                    if start.startswith(mark):
                        self.fail(f"the file is {kind}, not text", advice)
                encoding = _encoding(start, self.options.encoding)
                decoder = codecs.getincrementaldecoder(encoding)()
                file.seek(0)
                while not ended:
                    data = file.read(_BLOCK)
                    ended = not data
                    try:
                        rest += decoder.decode(data, ended)
                    except UnicodeDecodeError as error:
                        before = rest + error.object[: error.start].decode(encoding, errors="ignore")
                        self._refuse_encoding(number + len(_LINE_END.findall(before)))
                    # Do not cut after a final \r: a \n may follow.
                    end = len(rest) if ended else 1 + max(rest.rfind("\n"), rest.rfind("\r", 0, -1))
                    lines = _LINE_END.split(rest[:end])
                    if not ended:
                        lines.pop()  # what follows the last line end: nothing
                    rest = rest[end:]
                    if max(map(len, [*lines, rest])) > _LONGEST:
                        long = next((at for at, line in enumerate(lines) if len(line) > _LONGEST), len(lines))
                        problem = f"line {number + long} has more than {_LONGEST:,} characters"
                        self.fail(problem, "shorten its cells, or correct its line end")
                    if lines:
                        yield number, lines
                    number += len(lines)
        except OSError as error:
            self.fail(reason(error), f"name {self.what} that this account can read")

    def _refuse_encoding(self, line: int) -> NoReturn:
        encoding, advice = self.options.encoding, "set another encoding in [data.source]"
        if encoding == "utf-8":
            advice = 'save it as UTF-8, or set encoding = "windows-1252" (or "latin-1", "utf-16") in [data.source]'
        self.fail(f"line {line} is not {encoding} text", advice)


def _opens(line: str) -> bool:
    """Whether a line opens a quote without closing it, or the reverse."""
    return '"' in line and line.count('"') % 2 == 1


def _encoding(start: bytes, declared: str) -> str:
    """Return how to decode a file: a byte order mark says it, else the declared encoding."""
    if start.startswith(BOM_UTF8):
        return "utf-8-sig"
    if start.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    return "utf-16-le" if declared == "utf-16" else declared


@cache
def _quoted(separator: str) -> re.Pattern[str]:
    """Match whole cells in quotes."""
    ends = rf"{re.escape(separator)}\r\n"
    # The look-behind follows the first quote, because patterns that begin with a literal character are fastest.
    return re.compile(rf'"(?<![^{ends}]")[^"\r\n]*(?:""[^"\r\n]*)*"(?![^{ends}])')


def _toml(text: str) -> str:
    return '"\\t"' if text == "\t" else f'"{text}"'
