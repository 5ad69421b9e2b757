"""A site's own records: a CSV file read into arrays, and the part of it that training never sees.

Data that training cannot use is the fault a hospital meets most, and only the hospital can see it: a site's records
stay at the site, and so does the text of a `DataError`. So every complaint shows the very line.

    patients.csv:7: `mean_radius` is not a number
        842302,high,10.38,122.8
               ^^^^
    write a decimal number, or remove the line

The dialect is RFC 4180 without line breaks inside quotes: an unclosed quote then spoils one line, not the file.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import DataError
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_FIELD = re.compile(r'(?:[ \t]*"(?P<quoted>[^"]*(?:""[^"]*)*)"[ \t]*|(?P<bare>[^",]*))(?P<comma>,|\Z)')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # float() would take 1_000 for a number
_NOT_FINITE = {"nan", "inf", "infinity"}
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 76  # characters of an offending line
_HELD_OUT_SEED = 1


def read_csv(
    path: Path, *, features: Sequence[str], target: str, classes: Collection[float] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read named columns of numbers from a CSV file whose first line names its columns.

    Further columns may stand in the file, with anything in them; blank lines are skipped.

    Args:
        path: the file, in UTF-8.
        features: the columns of the inputs, in the order that the model expects.
        target: the column to predict.
        classes: the only values that the target may have, if not any number.

    Returns:
        Inputs `(n, len(features))` and targets `(n,)`, in the order of the file; n is at least 1.

    Raises:
        DataError: at the first thing that is wrong; says where, shows it, and says what to do.
    """
    lines = [line for line in _read_lines(path) if line.text.strip()]
    if not lines:
        advice = "name a file with a header and one line per record"
        raise _Line(path, 1, "").error((0, 1), "the file is empty", advice)
    header, *records = lines
    names = header.fields()
    columns = _find_columns(header, names, [*features, target])
    if not records:
        raise header.error((0, len(header.text)), "no records follow the header", "add one line per record below it")
    rows: list[NDArray[np.float32]] = []
    for line in records:
        fields = line.fields()
        if len(fields) != len(names):
            surplus = fields[len(names)].span[0] if len(fields) > len(names) else len(line.text)
            message = f"{len(fields)} fields where the header names {len(names)} columns"
            advice = "match the header: a comma inside a field needs quotes around it, a decimal comma must be a point"
            raise line.error((surplus, len(line.text)), message, advice)
        row = [_number(line, fields[column], names[column].text) for column in columns]
        if classes is not None and row[-1] not in classes:
            span = fields[columns[-1]].span
            advice = f"write {' or '.join(f'{value:g}' for value in classes)}"
            raise line.error(span, f"`{target}` is {row[-1]:g}, which is no class", advice)
        rows.append(np.array(row, np.float32))
    table = np.stack(rows)
    return table[:, :-1], table[:, -1]


def split_held_out(n: int, fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose which of a file's n records are held out: the same ones in every run, whatever they contain.

    The choice depends only on n and on a record's place in the file, so it reveals nothing about any record. A record
    removed from the middle of the file moves those after it to other places: for add-or-remove-one adjacency, think
    of the removed record as leaving its place empty.

    Args:
        n: how many records there are.
        fraction: the part to hold out, from 0 to 1.

    Returns:
        Ascending indices `(n - round(n * fraction),)` to train on and `(round(n * fraction),)` to hold out.

    >>> split_held_out(10, 0.2)[1]
    array([2, 9])
    """
    # Raw bits, because NumPy promises the same stream for ever only for these, not for Generator.permutation. Places
    # have keys of their own, so that few records change sides when a file grows.
    keys = np.random.PCG64(_HELD_OUT_SEED).random_raw(n)
    order = np.argsort(keys, kind="stable")
    held_out = round(n * fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


@dataclass(frozen=True)
class _Field:
    """One field of a line: what it says, and the characters that it takes up there."""

    text: str
    span: tuple[int, int]


@dataclass(frozen=True)
class _Line:
    """One line of a file, which knows how to point at itself."""

    path: Path
    number: int  # from 1
    text: str

    def fields(self) -> list[_Field]:
        """Cut the line at its commas."""
        fields: list[_Field] = []
        at = 0
        while match := _FIELD.match(self.text, at):
            quoted = match["quoted"]
            text = match["bare"] if quoted is None else quoted.replace('""', '"')
            fields.append(_Field(text.strip(), (at, match.start("comma"))))
            at = match.end()
            if not match["comma"]:
                return fields
        message = "a quote stands inside a field, or is not closed on its line"
        advice = 'put the whole field in quotes, and write "" for a quote inside it'
        raise self.error((at, len(self.text)), message, advice)

    def error(self, span: tuple[int, int], message: str, advice: str) -> DataError:
        """Make the error that points at these characters, from the first up to but not including the second."""
        start, stop = span
        left = max(0, min(start - _SHOWN // 2, len(self.text) - _SHOWN))
        # Control characters could drive the terminal; one dot for each keeps the carets in their place.
        shown = "".join(c if c.isprintable() else "·" for c in self.text[left : left + _SHOWN])
        carets = " " * (start - left) + "^" * max(1, min(stop, left + _SHOWN) - start)
        return DataError(f"{self.path}:{self.number}: {message}\n    {shown}\n    {carets}\n{advice}")


def _read_lines(path: Path) -> list[_Line]:
    """Read a text file as numbered lines."""
    try:
        data = read_file(path).removeprefix(BOM_UTF8)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}; name a CSV file that this account can read"
        raise DataError(msg) from error
    lines = [_Line(path, number, text) for number, text in enumerate(_cut(data.decode(errors="replace")), start=1)]
    try:
        data.decode()
    except UnicodeDecodeError as error:
        before = _cut(data[: error.start].decode())
        span = len(before[-1]), len(before[-1]) + 1
        raise lines[len(before) - 1].error(span, "not UTF-8 text", "save the file as UTF-8") from error
    return lines


def _cut(text: str) -> list[str]:
    """Cut text into lines; str.splitlines would also cut at characters that may stand inside a field."""
    return re.split(r"\r\n|\r|\n", text)


def _find_columns(header: _Line, names: list[_Field], wanted: list[str]) -> list[int]:
    """Return where the wanted columns stand."""
    places: dict[str, int] = {}
    for place, field in enumerate(names):
        if field.text in places:
            raise header.error(field.span, "an earlier column has the same name", "rename or remove one of them")
        places[field.text] = place
    for name in wanted:
        if name not in places:
            end = (len(header.text), len(header.text) + 1)
            advice = "add it, or correct its name in the header; columns are separated by commas"
            raise header.error(end, f"there is no column `{name}`", advice)
    return [places[name] for name in wanted]


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
