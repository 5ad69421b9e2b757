"""Tables in text files: the dialects of spreadsheets, and one sentence with line and column for whatever is wrong."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from client.data.columns import AnyColumn, Number
from client.data.sources.options import Csv
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Declared, Findings, read_tensors
from client.data.sources.text_tables import TextTable
from privacy.errors import DataError
from tests.client.data.sources.cohorts import (
    HEADER,
    INPUTS,
    ROWS,
    SECRET,
    TARGETS,
    Visits,
    Ward,
    complaint,
    problems,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

NUMBERS = st.floats(-1e6, 1e6)
NOTE = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)
WHOLE = "\n".join([HEADER, *ROWS, ""])


def write(folder: Path, data: str | bytes) -> Path:
    path = folder / "patients.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def as_read(folder: Path, data: str | bytes, options: Csv | None = None) -> None:
    """Check that these bytes are read as `ROWS`."""
    inputs, targets = read(write(folder, data), options or Csv())
    torch.testing.assert_close(inputs, torch.tensor(INPUTS), atol=2e-3, rtol=0)
    assert targets.tolist() == TARGETS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n \n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_lines_may_end_and_begin_as_spreadsheets_write_them(tmp_path: Path, start: bytes, end: str) -> None:
    as_read(tmp_path, start + WHOLE.replace("\n", end).encode())
    as_read(tmp_path, start + WHOLE.rstrip().replace("\n", end).encode())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "windows-1252"])
def test_text_may_have_any_of_the_usual_encodings(tmp_path: Path, encoding: str) -> None:
    text = "\n".join([HEADER + ",note", *(f"{row},König" for row in ROWS)])
    declared = {"utf-8-sig": "latin-1", "utf-16-le": "utf-16"}.get(encoding, encoding)  # a byte order mark wins
    as_read(tmp_path, text.encode(encoding), Csv(encoding=declared))  # type: ignore[arg-type]
    if encoding == "latin-1":
        message = complaint(write(tmp_path, text.encode(encoding)), Csv())
        assert message == (
            'patients.csv: line 2 is not utf-8 text; save it as UTF-8, or set encoding = "windows-1252" (or '
            '"latin-1", "utf-16") in [data.source]'
        )


def test_semicolons_decimal_commas_and_dates_are_read_or_the_message_names_the_option(
    tmp_path: Path,
) -> None:
    german = WHOLE.replace(",", ";").replace(".0", ",0")
    for year in ("2020", "2022", "2025"):
        german = german.replace(f"{year}-01-01", f"01.01.{year}").replace(f"{year}-07-02", f"02.07.{year}")
    as_read(tmp_path, german, Csv(separator=";", decimal=",", dates="%d.%m.%Y"))
    path = write(tmp_path, german)
    assert complaint(path, Csv()).startswith(
        'patients.csv: its first line names one column; set separator = ";" in [data.source]'
    )
    assert complaint(path, Csv(separator=";", dates="%d.%m.%Y")).startswith(
        'patients.csv, line 2, column `glucose`: a comma in a number; write it as 1234.5, or set decimal = ","'
    )
    assert complaint(path, Csv(separator=";", decimal=",")).startswith(
        "patients.csv, line 2, column `admitted`: not a date written as 2024-12-31; correct it, or set dates in"
    )
    points = write(tmp_path, german.replace("4,0", "1.234,0"))
    assert "a point in a number" in complaint(points, Csv(separator=";", decimal=",", dates="%d.%m.%Y"))


def test_every_problem_has_its_line_and_column_and_never_the_value(tmp_path: Path) -> None:
    lines = [
        HEADER,
        f"{SECRET},4,surgery,yes,2020-01-01,well",
        "",
        f"18,4,surgery,{SECRET},2020-01-01,well",
        f"18,4,surgery,yes,{SECRET},well",
        f"18,4,surgery,yes,2020-02-30,{SECRET}",
        "18,4,surgery,yes,2020-01-01",
        f'18,4,"{SECRET},yes,2020-01-01,well',
        "18,inf,surgery,yes,2020-01-01,well",
        "18,1e999,surgery,yes,2020-01-01,well",
        "18,4,surgery,yes,,well",
        ",4,surgery,yes,2020-01-01,",
        f"18,4,{'x' * 2000},yes,2020-01-01,well",
        "18,4,surgery,yes,2020-01-01,well",
    ]
    listed = problems(write(tmp_path, "\n".join(lines)), Csv())
    assert not any(SECRET in problem for problem in listed)
    assert [problem.partition(";")[0].removeprefix("patients.csv, ") for problem in listed] == [
        "line 2, column `age`: not a number",
        "line 4, column `smoker`: neither yes (1, true, yes, …) nor no (0, false, no, …)",
        "line 5, column `admitted`: not a date written as 2024-12-31",
        "line 6, column `admitted`: not a date written as 2024-12-31",
        "line 6, column `outcome`: none of the task's 2 values (well, ill)",
        "line 7: 5 cells where the first line names 6 columns",
        "line 8: a quote is inside a cell, or is not closed",
        "line 9, column `glucose`: not a number",
        "line 10, column `glucose`: not finite",
        "line 11, column `admitted`: no value",
        "line 12, column `age`: no value",
        "line 12, column `outcome`: no value",
        "line 13, column `ward`: more than 1,000 bytes long",
    ]
    assert complaint(tmp_path / "patients.csv", Csv()).endswith("(12 more; `cloister data check` lists them)")


def test_problems_of_a_whole_file_are_reported_without_a_line(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    assert complaint(path, Csv()) == (
        "patients.csv: no such file or directory; name a text file that this account can read"
    )
    for data, message in {
        "": "the file is empty; name a file with the columns' names and one line per record",
        "\n \n": "the file is empty; name a file with the columns' names and one line per record",
        HEADER: "no records follow the line that names the columns; add one line per record",
        f"{HEADER},ward\n": "columns 3 and 7 have the same name; rename or remove one of them",
        WHOLE.replace("smoker", "smokr"): (
            "there is no column `smoker`; did you mean `smokr`? If so, correct it, or set columns in [data.source]"
        ),
        WHOLE.replace("smoker", SECRET): (
            "there is no column `smoker`; add it, or say in [data.source.columns] of site.toml what it is called here"
        ),
        f"{HEADER}\n{'x' * (3 << 20)}": "line 2 has more than 1,048,576 characters; shorten its cells, or correct its "
        "line end",
        f'"{HEADER}\n': "a quote is not closed on line 1; correct it",
    }.items():
        assert complaint(write(tmp_path, data), Csv()) == f"patients.csv: {message}"


def test_a_site_may_have_its_own_names_units_and_words_for_missing(tmp_path: Path) -> None:
    text = WHOLE.replace("age,", "alter,").replace("59,,", "59,n/v,").replace(",4.0,", ",72.072,")
    text = text.replace("12.0", "216.216")
    options = Csv(columns={"age": "alter"}, units={"glucose": "mg/dL"}, missing=("n/v",))
    as_read(tmp_path, text, options)
    assert "the unit" not in complaint(write(tmp_path, text), Csv(columns={"age": "alter"}))
    assert "in a unit that the task does not declare; it declares mmol/L, mg/dL" in complaint(
        write(tmp_path, text), Csv(columns={"age": "alter"}, units={"glucose": "g/L"}, missing=("n/v",))
    )
    assert complaint(write(tmp_path, text), Csv(columns={"agee": "alter", "of another task": "x"})) == (
        "patients.csv: there is no column `age`; of the names in [data.source.columns], did you mean `agee`?"
    )


def test_values_beyond_the_range_are_clipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, f"{HEADER}\n-5,99,surgery,yes,1999-01-01,well\n500,2,surgery,yes,2020-01-01,well\n")
    findings = Findings()
    columns: Sequence[AnyColumn] = [Number("age", low=18, high=100), Number("glucose", low=2, high=12)]
    tensors = read_tensors(TextTable(path, Csv()), Declared(columns, columns[:1]), findings)
    assert tensors.inputs.tolist() == [[-1, 1], [1, -1]]
    assert tensors.rows == [2, 3]
    assert {name: counts.clipped for name, counts in findings.counts.items()} == {"age": 4, "glucose": 1}


@given(
    rows=st.lists(st.tuples(NUMBERS, NOTE, NUMBERS), min_size=1, max_size=30),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_reads_back_any_table_that_csv_writes(
    rows: list[tuple[float, str, float]], separator: str, quoting: int
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\r\n")  # type: ignore[arg-type]
    writer.writerow(["a", "note", "b"])
    writer.writerows(rows)
    columns = [Number("a", low=-1e6, high=1e6), Number("b", low=-1e6, high=1e6)]
    with TemporaryDirectory() as folder:
        path = write(Path(folder), file.getvalue())
        table = TextTable(path, Csv(separator=separator))  # type: ignore[arg-type]
        tensors = read_tensors(table, Declared(columns[:1], columns[1:]), Findings())
    expected = torch.tensor([[row[0], row[2]] for row in rows], dtype=torch.float64) / 1e6
    torch.testing.assert_close(torch.cat([tensors.inputs, tensors.targets], 1), expected.float())


@given(
    st.binary() | st.binary().map(f"{HEADER}\n".encode().__add__) | TEXT.map(lambda text: f"{HEADER}\n{text}".encode())
)
@example(f"{HEADER}\n1,\0,surgery,1,2020-01-01,well".encode())
@example(b'"' * 5001)
def test_any_other_bytes_are_a_data_error(data: bytes) -> None:
    with TemporaryDirectory() as folder, pytest.raises(DataError, match=r"patients\.csv"):
        read(write(Path(folder), data), Csv())


@pytest.mark.parametrize("block", [1, 7, 64])
def test_the_size_of_blocks_does_not_change_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("client.data.sources.text_tables._BLOCK", block)
    as_read(tmp_path, WHOLE.replace("\n", "\r\n").encode("utf-8-sig"))
    as_read(tmp_path, WHOLE.replace("oncology", '"onco\nlo\ngy"'))
    monkeypatch.setattr("client.data.sources.text_tables._LONGEST", 100)
    spoiled = f"{WHOLE}1,2\n{'x' * 150}\n"
    assert "line 6 has more than 100 characters" in complaint(write(tmp_path, spoiled), Csv())


def test_rows_of_one_person_are_named_by_a_column_of_their_own(tmp_path: Path) -> None:
    text = "\n".join([f"{HEADER},patient", *(f"{row},{name}" for row, name in zip(ROWS, ("7", "b", "7"), strict=True))])
    inputs, _, persons = read(write(tmp_path, text), Csv(), Visits())
    assert inputs.shape[1] == Visits().width == Ward().width
    assert persons == ["7", "b", "7"]
    assert complaint(write(tmp_path, text.replace(",b", ",")), Csv(), Visits()) == (
        "patients.csv, line 3, column `patient`: no name of a person; fill it in, or leave the record out"
    )


def test_a_task_without_a_source_reads_a_file_by_its_suffix(tmp_path: Path) -> None:
    loaded: Any = Ward().load(write(tmp_path, WHOLE))
    assert loaded[1].tolist() == TARGETS
    with pytest.raises(DataError, match=r"reads no file by itself; set source in \[data\] of site\.toml"):
        Ward().load_from(Source(tmp_path / "records.dat"))


def test_new_records_without_a_target_are_read_for_a_trained_model(tmp_path: Path) -> None:
    lines = [line.rpartition(",")[0] for line in (HEADER, *ROWS)]
    (tmp_path / "new.csv").write_text("\n".join(lines), encoding="utf-8")
    assert torch.allclose(Ward().inputs_of(tmp_path / "new.csv"), torch.tensor(INPUTS), atol=1e-3)
    (tmp_path / "other.txt").write_text("\n".join(line.replace(",", ";") for line in lines), encoding="utf-8")
    with pytest.raises(DataError, match="set source in"):
        Ward().inputs_of(tmp_path / "other.txt")
    (tmp_path / "site.toml").write_text(
        'site = "north"\nserver = "localhost:1"\n[data]\nfile = "a.csv"\nlineage = "people"\n'
        '[data.source]\nname = "csv"\nseparator = ";"\n'
        "[budget]\nepsilon = 4.0\ndelta = 1e-5\n[policy]\ntasks = []\nmaximum_epsilon = 3.5\n"
    )
    read_as_there = Ward().inputs_of(tmp_path / "other.txt", site=tmp_path)
    assert torch.equal(read_as_there, Ward().inputs_of(tmp_path / "new.csv"))
    (tmp_path / "new.csv").write_text("\n".join([lines[0], f"{SECRET},4,surgery,yes,2020-01-01"]), encoding="utf-8")
    with pytest.raises(DataError, match="line 2, column `age`: not a number") as caught:
        Ward().inputs_of(tmp_path / "new.csv")
    assert SECRET not in str(caught.value)
