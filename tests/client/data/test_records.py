"""The CSV reader takes every table of finite numbers, and turns anything else into one error that shows the place."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from client.data import records as module
from client.data.records import read_csv
from privacy.errors import DataError

FEATURES = ("size", "age")
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


def read(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    # Not tmp_path, which hypothesis' examples would share.
    with TemporaryDirectory() as folder:
        path = Path(folder, "patients.csv")
        path.write_bytes(data)
        return read_csv(path, features=FEATURES, target="ill")


def outcome(data: bytes, *, plain: bool = True) -> object:
    """What is read, or the complaint; without `plain`, all of it line by line."""
    with pytest.MonkeyPatch.context() as patch:
        if not plain:
            patch.setattr(module._Columns, "read_plain", lambda *_: None)
        try:
            inputs, targets = read(data)
        except DataError as error:
            return str(error).rpartition("/")[2]
        return inputs.tolist(), targets.tolist()


def complaint(data: bytes) -> list[str]:
    """The error's lines, without the folder."""
    with pytest.raises(DataError) as caught:
        read(data)
    where, *rest = str(caught.value).splitlines()
    return [where.rpartition("/")[2], *rest]


@given(
    rows=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, TEXT), min_size=1),
    order=st.permutations(["size", "age", "ill", "note"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_reads_back_any_table_that_csv_writes(
    rows: list[tuple[float, float, float, str]], order: list[str], end: str, quoting: int
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(order)
    for row in rows:
        record = dict(zip(["size", "age", "ill", "note"], row, strict=True))
        writer.writerow([record[name] for name in order])
    inputs, targets = read(file.getvalue().encode())
    assert inputs.dtype == targets.dtype == np.float32
    np.testing.assert_array_equal(inputs, np.array([row[:2] for row in rows], np.float32))
    np.testing.assert_array_equal(targets, np.array([row[2] for row in rows], np.float32))


@given(
    st.binary() | st.binary().map(b"size,age,ill\n".__add__) | TEXT.map(lambda text: f"size,age,ill\n{text}".encode())
)
@example(b"size,age,ill\n1,2," + b"9" * 5000)
@example(b"size,age,ill\n1,2,\xd9\xa1")  # a digit, but not an ASCII one
@example(b"size,age,ill\n1,2,0\x00")
@example(b'"' * 5001)
def test_any_other_bytes_are_a_data_error_that_names_file_and_line(data: bytes) -> None:
    try:
        inputs, targets = read(data)
    except DataError as error:
        message = str(error)
    else:
        assert np.isfinite(inputs).all()
        assert np.isfinite(targets).all()
        return
    assert "patients.csv:" in message.splitlines()[0]


QUOTES = ['"1"', ' "1"', '"1" ', '"1', '1"', '"a,b"', '"a""b"', 'a"b', '"a"b', '"a\nb"', '"']
CELLS = st.one_of(
    st.floats().map(str),
    st.sampled_from(QUOTES),
    st.sampled_from(["", " ", " 2\t", "+3", "-.5e1", "1e999", "1_0", "0x1", "1,2", "nan", "infinity", "NA", "null"]),
    st.sampled_from(["é", "\x00", "\x0b", "\N{NO-BREAK SPACE}1"]),
    st.text(st.sampled_from('1.,"e \t\r\n+-'), max_size=6),
)
NUMBER = st.one_of(*[st.sampled_from(["1", "0"])] * 9, CELLS)
LINE = st.tuples(NUMBER, NUMBER, NUMBER, CELLS).map(",".join)


@settings(max_examples=400)
@given(
    lines=st.lists(st.one_of(LINE, LINE, LINE, CELLS)),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(1, 64) | st.just(1 << 20),
)
def test_bulk_and_line_by_line_reading_agree(lines: list[str], end: str, block: int) -> None:
    data = end.join(["size,age,ill,note", *lines]).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        result = outcome(data)
    assert result == outcome(data, plain=False)


def test_a_block_without_a_fault_is_never_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Columns, "read_lines", lambda *_: pytest.fail("slow"))
    rows = ['1, 2,+3,"a, ""b"""', "-1e-400,.5,1e10,", '"4","5","6",\tc d']
    inputs, targets = read("\r\n".join(["size,age,ill,note", *rows]).encode())
    assert inputs.tolist() == [[1, 2], [0, 0.5], [4, 5]]
    assert targets.tolist() == [3, 1e10, 6]


def test_only_the_block_with_a_fault_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    read_lines, seen = module._Columns.read_lines, list[int]()

    def watched(columns: module._Columns, block: module._Block) -> np.ndarray:
        seen.append(block.data.count(b"\n"))
        return read_lines(columns, block)

    monkeypatch.setattr(module._Columns, "read_lines", watched)
    monkeypatch.setattr(module, "_BLOCK", 1000)
    good = b"1,2,0\n" * 5000
    where, *_ = complaint(b"size,age,ill\n" + good + b" \n" + good + b"1,two,0\n" + good)
    assert where == "patients.csv:10003: `age` is not a number"
    assert len(seen) == 2  # that with a blank line, and that with the fault
    assert sum(seen) < 500


def test_a_byte_order_mark_before_the_header_is_ignored() -> None:
    inputs, targets = read("\ufeffsize,age,ill\r\n1,2,0\r\n".encode())
    assert inputs.tolist() == [[1.0, 2.0]]
    assert targets.tolist() == [0.0]


@given(TEXT, st.integers(0, 200), st.integers(0, 200))
def test_carets_are_under_the_field_in_a_line_of_any_length(note: str, before: int, after: int) -> None:
    quoted = note.replace('"', '""')
    line = f'{"n" * before},1,bad,"{quoted}",{"n" * after}'
    where, excerpt, carets, _ = complaint(f"a,size,age,b,ill\n{line}\n".encode())
    assert where == "patients.csv:2: `age` is not a number"
    assert len(excerpt) <= 80
    assert excerpt[carets.index("^") : carets.rindex("^") + 1] == "bad"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(
            "size,age,ill\n1,,0\n",
            ["2: `age` is missing", "1,,0", "  ^", "fill it in, or remove the line"],
            id="missing value",
        ),
        pytest.param(
            "size,age,ill\n\n1,2,0\n1,high,0\n",
            ["4: `age` is not a number", "1,high,0", "  ^^^^", "write a decimal number, or remove the line"],
            id="text",
        ),
        pytest.param(
            "size,age,ill\n1_000,2,0\n",
            ["2: `size` is not a number", "1_000,2,0", "^^^^^", "write a decimal number, or remove the line"],
            id="underscore",
        ),
        pytest.param(
            "size,age,ill\n1,2,NaN\n",
            ["2: `ill` is not finite", "1,2,NaN", "    ^^^", "write the measured value, or remove the line"],
            id="nan",
        ),
        pytest.param(
            "size,age,ill\n-inf,2,0\n",
            ["2: `size` is not finite", "-inf,2,0", "^^^^", "write the measured value, or remove the line"],
            id="inf",
        ),
        pytest.param(
            "size,age,ill\n1,1e39,0\n",
            ["2: `age` is too large", "1,1e39,0", "  ^^^^", "write a number below 3.4e+38, or remove the line"],
            id="beyond float32",
        ),
        pytest.param(
            "size,age\n1,2\n",
            [
                "1: there is no column `ill`",
                "size,age",
                "        ^",
                "add it, or correct its name in the header; columns are separated by commas",
            ],
            id="missing column",
        ),
        pytest.param(
            "size,age,ill,size\n1,2,0,3\n",
            [
                "1: an earlier column has the same name",
                "size,age,ill,size",
                "             ^^^^",
                "rename or remove one of them",
            ],
            id="duplicate column",
        ),
        pytest.param(
            "size,age,ill\n1,2\n",
            [
                "2: 2 fields where the header names 3 columns",
                "1,2",
                "   ^",
                "match the header: put a field with a comma in quotes, and write decimal numbers with a point",
            ],
            id="too few fields",
        ),
        pytest.param(
            "size,age,ill\n1,2,5,0\n",
            [
                "2: 4 fields where the header names 3 columns",
                "1,2,5,0",
                "      ^",
                "match the header: put a field with a comma in quotes, and write decimal numbers with a point",
            ],
            id="too many fields",
        ),
        pytest.param(
            'size,age,ill\n1,"2,0\n3,4,1\n',
            [
                "2: a quote is inside a field, or is not closed on its line",
                '1,"2,0',
                "  ^^^^",
                'put the whole field in quotes, and write "" for a quote inside it',
            ],
            id="open quote",
        ),
        pytest.param(
            "size,age,ill\n",
            ["1: no records follow the header", "size,age,ill", "^" * 12, "add one line per record below it"],
            id="no records",
        ),
        pytest.param(
            "",
            ["1: the file is empty", "", "^", "name a file with a header and one line per record"],
            id="empty file",
        ),
        pytest.param(
            "size,age,ill\n1,\x1b[2J,0\n",
            ["2: `age` is not a number", "1,·[2J,0", "  ^^^^", "write a decimal number, or remove the line"],
            id="control characters",
        ),
    ],
)
def test_a_bad_file_is_shown_with_a_remedy(data: str, expected: list[str]) -> None:
    where, excerpt, carets, advice = expected
    assert complaint(data.encode()) == [f"patients.csv:{where}", f"    {excerpt}", f"    {carets}", advice]


def test_bytes_that_are_not_utf8_are_shown_with_their_line() -> None:
    assert complaint("size,age,ill\r\n1,Müller,0".encode("latin-1")) == [
        "patients.csv:2: not UTF-8 text",
        "    1,M�ller,0",
        "       ^",
        "save the file as UTF-8",
    ]


@pytest.mark.parametrize("name", ["nowhere.csv", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="name a CSV file that this account can read"):
        read_csv(tmp_path / name, features=FEATURES, target="ill")


def test_a_target_outside_its_classes_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("size,age,ill\n1,2,0\n1,2,2\n")
    with pytest.raises(DataError, match=r":3: `ill` is 2, which is not a class\n    1,2,2\n        \^\nwrite 0 or 1"):
        read_csv(path, features=FEATURES, target="ill", classes=(0.0, 1.0))


def test_the_text_of_a_complaint_stays_at_the_site() -> None:
    with pytest.raises(DataError) as caught:
        read(b"size,age,ill\n1,secret,0\n")
    assert "secret" in str(caught.value)
    assert "secret" not in caught.value.public
