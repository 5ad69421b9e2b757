"""Parquet tables give the same records as text, whatever types their columns have; damaged ones are refused."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from client.data.sources.options import Parquet
from tests.client.data.sources.cohorts import INPUTS, SECRET, TARGETS, Visits, complaint, problems, read

if TYPE_CHECKING:
    from pathlib import Path

NEW_YORK = ZoneInfo("America/New_York")
DAYS = [date(2020, 1, 1), date(2025, 1, 1), date(2022, 7, 2)]
COLUMNS: dict[str, Any] = {
    "age": [18, 100, 59],
    "glucose": [4.0, 12.0, None],
    "ward": ["surgery", "medicine", "oncology"],
    "smoker": [True, False, True],
    "admitted": DAYS,
    "outcome": ["well", "ill", "ill"],
    "note": [SECRET] * 3,
}


def write(folder: Path, **columns: Any) -> Path:  # noqa: ANN401 - whatever PyArrow takes
    path = folder / "patients.parquet"
    parquet.write_table(pa.table(COLUMNS | columns), path)
    return path


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"age": pa.array([18, 100, 59], pa.uint8()), "glucose": [4.0, 12.0, float("nan")]},
        {"age": [Decimal("18.0"), Decimal("100.0"), Decimal("59.0")], "admitted": pa.array(DAYS, pa.date64())},
        {"admitted": [datetime(day.year, day.month, day.day, 13, tzinfo=UTC) for day in DAYS]},
        {"admitted": [str(day) for day in DAYS], "glucose": ["4", "12.0", " NA "], "smoker": [1, 0, 1]},
        {"ward": pa.array(COLUMNS["ward"]).dictionary_encode(), "smoker": [1.0, None, 1.0]},
        {"outcome": pa.array(COLUMNS["outcome"], pa.large_string()), "smoker": ["Y", "n", "T"]},
        {"age": np.array([18, 100, 59], np.float16), "smoker": np.array([1, 0, 1], np.float16)},
        {
            "age": pa.array([Decimal(18), Decimal(100), Decimal(59)], pa.decimal256(60, 2)),
            "smoker": [Decimal("1.00"), Decimal("0.00"), Decimal("1.00")],
        },
        {"glucose": pa.array([4.0, 12.0, None]).dictionary_encode(), "admitted": pa.array(DAYS).dictionary_encode()},
        {"admitted": [datetime(day.year, day.month, day.day, 23, tzinfo=NEW_YORK) for day in DAYS]},
        {"admitted": pa.array(DAYS, pa.date32()).cast(pa.timestamp("ns"))},
    ],
)
def test_columns_may_have_any_type_that_holds_their_values(tmp_path: Path, columns: dict[str, Any]) -> None:
    inputs, targets = read(write(tmp_path, **columns), Parquet())
    torch.testing.assert_close(inputs, torch.tensor(INPUTS), atol=2e-3, rtol=0)
    assert targets.tolist() == TARGETS


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"age": [timedelta(18)] * 3}, "column `age`: not a number but of type duration[us]; convert the column"),
        (
            {"age": [datetime(2020, 1, 1, tzinfo=UTC)] * 3},
            "column `age`: not a number but of type timestamp[us, tz=UTC]",
        ),
        ({"age": [{"value": 18}] * 3}, "column `age`: not a number but a list or structure; convert the column"),
        ({"age": ["18 years"] * 3}, "column `age`: not a number; write it as 1234.5, or name it in missing of"),
        (
            {"age": ["18,5"] * 3},
            "column `age`: a comma in a number; write it as 1234.5, or write the column as numbers if",
        ),
        ({"ward": [["surgery"]] * 3}, "column `ward`: not a text but a list or structure; convert the column"),
        ({"ward": DAYS}, "column `ward`: not a text but of type date32[day]; convert the column"),
        ({"admitted": [time(12)] * 3}, "column `admitted`: not a date but of type time64[us]; convert the column"),
        ({"patient": [b"7"] * 3}, "column `patient`: not a name but of type binary; convert the column"),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path: Path, column: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **({"patient": ["a", "b", "c"]} | column))
    assert complaint(path, Parquet(), Visits()).startswith(f"patients.parquet, row 1, {message}")


def test_names_of_persons_may_be_coded(tmp_path: Path) -> None:
    path = write(tmp_path, patient=pa.array(["7", "b", "7"]).dictionary_encode())
    assert list(read(path, Parquet(), Visits())[2]) == ["7", "b", "7"]


def test_files_of_one_folder_may_have_other_types_each(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"a": [18, 19, 20], "b": ["30", "101", "NA"], "c": [1.5, 2.5, None]}
    for name, ages in kinds.items():
        write(tmp_path, age=ages).rename(tmp_path / f"{name}.parquet")
    assert complaint(tmp_path, Parquet()).startswith(
        f"{tmp_path.name}, row 6, column `age`: no value; fill it in, or leave the record out (1 more"
    )


def test_codes_stored_as_floats_because_of_gaps_are_read_as_codes(tmp_path: Path) -> None:
    path = write(tmp_path, ward=[1.0, None, 2.5])
    assert problems(path, Parquet()) == []  # 1 and 2.5 are other wards, and a missing one is medicine
    assert read(path, Parquet())[0][:, 2:5].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_every_problem_has_its_row_and_column(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        age=[18.0, float("inf"), None],
        glucose=[[4.0], [1.0], []],
        ward=[b"a", b"b", b"c"],
        admitted=[1, 2, 3],
        outcome=["well", None, SECRET],
    )
    listed = problems(path, Parquet())
    assert not any(SECRET in problem for problem in listed)
    assert (
        "patients.parquet, row 2, column `age`: not finite; write the measured value, or leave the record out" in listed
    )
    assert "patients.parquet, row 3, column `age`: no value; fill it in, or leave the record out" in listed
    assert (
        "patients.parquet, row 1, column `glucose`: not a number but a list or structure; convert the column" in listed
    )
    assert "patients.parquet, row 1, column `ward`: not a text but of type binary; convert the column" in listed
    assert "patients.parquet, row 1, column `admitted`: not a date but of type int64; convert the column" in listed
    assert "patients.parquet, row 2, column `outcome`: no value; fill it in, or leave the record out" in listed
    assert listed[-1] == (
        "patients.parquet, row 3, column `outcome`: none of the task's 2 values (well, ill); correct it"
    )


def test_a_folder_of_files_is_one_table_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, ages in {"b": [30, 101, 102], "a": [18, 19, 20]}.items():
        write(tmp_path, age=ages).rename(tmp_path / f"{name}.parquet")
    inputs, targets = read(tmp_path, Parquet())
    assert len(inputs) == len(targets) == 6
    assert inputs[[0, 4], 0].tolist() == [-1, 1]
    (tmp_path / "empty").mkdir()
    (tmp_path / "year=2020" / "month=1").mkdir(parents=True)
    (tmp_path / "a.parquet").rename(tmp_path / "year=2020" / "month=1" / "a.parquet")
    assert "its folder year=2020/month=1 has files *.parquet, too; put all of" in complaint(tmp_path, Parquet())
    assert (
        complaint(tmp_path / "empty", Parquet())
        == "empty: this folder has no file *.parquet; name another, or one file"
    )


def test_a_damaged_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    message = "the file of row 1 is not a whole Parquet file, or is encrypted; write it again, as plain Parquet"
    for data in (whole[:4], whole[: len(whole) // 2], whole[:-1], b"x" * 200):
        path.write_bytes(data)
        assert complaint(path, Parquet()) == f"patients.parquet: {message}"
    path.write_bytes(b"")
    assert complaint(path, Parquet()) == "patients.parquet: the file is empty; name a whole Parquet file"
    path.write_bytes(whole[:4] + bytes(120) + whole[124:])
    assert "damaged" in complaint(path, Parquet()) or "whole" in complaint(path, Parquet())
    path.unlink()
    assert "no such file or directory" in complaint(path, Parquet())


def test_a_missing_or_doubled_column_is_refused_and_an_empty_table_too(tmp_path: Path) -> None:
    table = pa.table(COLUMNS)
    path = tmp_path / "patients.parquet"
    parquet.write_table(table.drop_columns(["age"]), path)
    assert "there is no column `age`" in complaint(path, Parquet())
    parquet.write_table(table.append_column("ward", table["ward"]), path)
    assert "columns 3 and 8 have the same name" in complaint(path, Parquet())
    parquet.write_table(table.slice(0, 0), path)
    said = complaint(path, Parquet())
    assert said == "patients.parquet: it has columns, but no rows; add one row per record, or name another"
    parquet.write_table(pa.table({}), path)
    assert "patients.parquet: it has no columns; name one with the task's columns" in complaint(path, Parquet())


def test_a_row_group_too_large_for_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.data.sources.parquet._MOST", 10)
    assert "row group 1 has more than" in complaint(write(tmp_path), Parquet())
