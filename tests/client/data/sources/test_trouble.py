"""Twelve troubles that data come with: the right records, or one clear sentence before anything is charged."""

from __future__ import annotations

import gzip
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from unicodedata import normalize

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from client.data.columns import AnyColumn, Category, Flag
from client.data.sources.options import Csv, Dicom, Images, Sql
from client.flower import open_site
from privacy.errors import DataError
from tests.client.data.sources.cohorts import HEADER, INPUTS, ROWS, TARGETS, Picture, Visits, Ward, complaint, read
from tests.client.data.sources.test_dicom import Scan, dicom, save
from tests.client.data.sources.test_images import labels
from tests.client.data.sources.test_sql import QUERY, Diabetes, fill
from tests.federations import NOISY, SITES, TERMS, FederationMaker, charges_of, restart, run_with, task_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WHOLE = "\n".join([HEADER, *ROWS, ""])

TAKEN: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a byte order mark": (WHOLE.encode("utf-8-sig"), {}),
    "semicolons": (WHOLE.replace(",", ";").encode(), {"separator": ";"}),
    "decimal commas": (WHOLE.replace(",", ";").replace(".", ",").encode(), {"separator": ";", "decimal": ","}),
    "Latin-1": (WHOLE.replace("oncology", "Köln").encode("latin-1"), {"encoding": "latin-1"}),
    "missing values": (WHOLE.replace("59,,", "59,NA,").encode(), {}),
    "a new category": (WHOLE.replace("oncology", "paediatrics").encode(), {}),
    "codes with a point": (WHOLE.replace("yes", "1.0").replace("no,", "0.0,").encode(), {}),
    "dates": (WHOLE.replace("2020-01-01", "01/01/20").replace("2025-01-01", "01/01/25")
              .replace("2022-07-02", "02/07/22").encode(), {"dates": "%d/%m/%y"}),
    "columns without a name": (WHOLE.replace("\n", ",,,\n").encode(), {}),
    "a first line for Excel": (f"sep=;\r\n{WHOLE}".replace(",", ";").encode(), {"separator": ";"}),
    "other forms of numbers": (WHOLE.replace("18,4.0", "+18.,.4e1").replace("100,", "1E2,").encode(), {}),
    "spaces that do not break": (WHOLE.replace("18", "\u00a018\u2009").encode(), {}),
    "letters of any script": (WHOLE.replace("oncology", "🏥 病院").encode(), {}),
    "a null character": (WHOLE.replace("oncology", "onco\0logy").encode(), {}),
    "a separator in quotes": (WHOLE.replace("oncology", '"oncology, ""B"""').encode(), {}),
    "line breaks in quotes": (WHOLE.replace("oncology", '"on\n\nco ""\r\n""logy"').encode(), {}),
    "a time of day": (WHOLE.replace("2020-01-01", "2020-01-01T23:59:59-11:00").encode(), {}),
}  # fmt: skip
REFUSED: dict[str, tuple[bytes, str]] = {
    "semicolons": (WHOLE.replace(",", ";").encode(), 'its first line names one column; set separator = ";"'),
    "decimal commas": (
        WHOLE.replace("4.0", '"4,0"').encode(),
        "line 2, column `glucose`: a comma in a number; write it as 1234.5, or set decimal = ",
    ),
    "thousands": (
        WHOLE.replace("12.0", '"1,200.0"').encode(),
        "line 3, column `glucose`: not a number; write it as 12",
    ),
    "thousands with spaces": (WHOLE.replace("12.0", "1 200").encode(), "line 3, column `glucose`: not a number; write"),
    "per cent": (WHOLE.replace("12.0", "12%").encode(), "line 3, column `glucose`: not a number; write it as 1234.5"),
    "a currency": (WHOLE.replace("12.0", "€12").encode(), "line 3, column `glucose`: not a number; write it as 1234.5"),
    "other digits": (
        WHOLE.replace("100,", "\uff11\uff10\uff10,").encode(),
        "line 3, column `age`: not a number; write it as 1234.5",
    ),
    "an error of a spreadsheet": (
        WHOLE.replace("59,", "#N/A,").encode(),
        "line 4, column `age`: not a number; write it as 1234.5, or name it in missing of [data.source] if it stands",
    ),
    "a day as a number": (
        WHOLE.replace("2020-01-01", "43831").encode(),
        "line 2, column `admitted`: not a date written as 2024-12-31; correct it, or set dates in [data.source]",
    ),
    "a quote that is never closed": (
        WHOLE.replace("oncology", '"oncology').encode(),
        "line 4: a quote is inside a cell, or is not closed; put the whole cell in quotes",
    ),
    "columns of one name": (
        WHOLE.replace("smoker", "age").encode(),
        "columns 1 and 4 have the same name; rename or remove one of them",
    ),
    "too many separators": (
        WHOLE.replace("well", "well,").encode(),
        "line 2: 7 cells where the first line names 6 columns; put a cell with the separator inside in quotes",
    ),
    "two bytes a character": (
        WHOLE.encode("utf-16-le"),
        'its first line has null characters; if it is such text, set encoding = "utf-16" in [data.source]',
    ),
    "Latin-1": (WHOLE.replace("oncology", "Köln").encode("latin-1"), "line 4 is not utf-8 text; save it as UTF-8"),
    "missing values": (WHOLE.replace("18,", ",").encode(), "line 2, column `age`: no value; fill it in"),
    "a label out of range": (WHOLE.replace("ill", "4").encode(), "line 3, column `outcome`: none of the task's 2 valu"),
    "dates": (WHOLE.replace("2020-01-01", "01.01.2020").encode(), "line 2, column `admitted`: not a date written as"),
    "a compressed file": (gzip.compress(WHOLE.encode()), "the file is compressed with gzip, not text; unpack it"),
    "a spreadsheet": (b"PK\3\4" + bytes(99), "the file is a spreadsheet, or another zip archive, not text; save its"),
    "Parquet": (b"PAR1\x15" + bytes(99), 'the file is a Parquet file, not text; set name = "parquet" in [data.source]'),
    "an empty file": (b"", "the file is empty; name a file with the columns' names and one line per record"),
}


@pytest.mark.parametrize("trouble", TAKEN)
def test_unusual_but_readable_files_give_the_right_records(tmp_path: Path, trouble: str) -> None:
    data, options = TAKEN[trouble]
    (tmp_path / "patients.csv").write_bytes(data)
    inputs, targets = read(tmp_path / "patients.csv", Csv(**options))
    torch.testing.assert_close(inputs, torch.tensor(INPUTS), atol=2e-3, rtol=0)
    assert targets.tolist() == TARGETS


@pytest.mark.parametrize("trouble", REFUSED)
def test_unreadable_files_are_refused_in_one_sentence(tmp_path: Path, trouble: str) -> None:
    data, message = REFUSED[trouble]
    (tmp_path / "patients.csv").write_bytes(data)
    assert message in complaint(tmp_path / "patients.csv", Csv())


@given(code=st.integers(-99, 99), zeros=st.integers(1, 3))
def test_a_code_with_a_point_is_the_code_unless_the_task_lists_both(
    tmp_path_factory: pytest.TempPathFactory, code: int, zeros: int
) -> None:
    class Coded(Ward):
        columns: ClassVar[Sequence[AnyColumn]] = (Category("code", [str(code), f"{code}.0", str(code + 1)]),)

    path = tmp_path_factory.mktemp("coded") / "patients.csv"
    path.write_text(f"code,outcome\n{code},well\n{code}.0,well\n{code + 1}.{'0' * zeros},well\n")
    assert read(path, Csv(), Coded())[0].argmax(1).tolist() == [0, 1, 2]
    path.write_text(f"code,outcome\n{code + 1}.5,well\n")
    assert "none of the task's 3 values" in complaint(path, Csv(), Coded())


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_letter_is_the_same_whether_it_is_one_character_or_two(tmp_path: Path, form: Literal["NFC", "NFD"]) -> None:
    class Placed(Visits):
        columns: ClassVar[Sequence[AnyColumn]] = (
            Category("place", ["Köln", "Århus"]), Flag("male", yes=["männlich"], no=["weiblich"]),
        )  # fmt: skip

    text = "place,male,outcome,patient\nKöln,Männlich,well,Jürgen\nÅrhus,weiblich,ill,Jürgen\n"
    (tmp_path / "patients.csv").write_text(normalize(form, text), encoding="utf-8")
    inputs, _, persons = read(tmp_path / "patients.csv", Csv(), Placed())
    assert inputs.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert list(persons) == ["Jürgen"] * 2


def test_an_image_that_is_cut_is_one_sentence(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    for name in ("a.png", "a.jpg", "a.tiff", "a.bmp"):
        Image.fromarray(noise).save(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        message = complaint(labels(tmp_path, f"{name},benign"), Images(), Picture())
        assert message.startswith("labels.csv, line 2, column `file`: "), name
        assert "damaged" in message, name


def test_a_dicom_of_another_modality_is_one_sentence(tmp_path: Path) -> None:
    message = complaint(save(tmp_path, dicom(Modality="US")), Dicom(), Scan())
    assert message == (
        "labels.csv, line 2, column `file`: of another modality than CT, which the task declares; leave the record out"
    )


def test_a_null_in_sql_is_missing_or_one_sentence(tmp_path: Path) -> None:
    fill(f"sqlite:///{tmp_path}/omop.db")
    (tmp_path / "cohort.sql").write_text(QUERY)
    options = Sql(url="sqlite:///omop.db", order_by="person_id")
    assert read(tmp_path / "cohort.sql", options, Diabetes())[0][1, 4] == -0.5  # the constant for a missing HbA1c
    (tmp_path / "cohort.sql").write_text(QUERY.replace(" ELSE 'unknown'", ""))
    assert complaint(tmp_path / "cohort.sql", options, Diabetes()) == (
        "cohort.sql, row 2, column `sex`: no value; fill it in, or leave the record out (1 more; `cloister data check` "
        "lists them)"
    )


def test_trouble_at_one_site_costs_it_nothing_and_the_others_go_on(make_federation: FederationMaker) -> None:
    usual = replace(TERMS, tasks=(task_name(Ward),))
    federation = make_federation(replace(NOISY, task=task_name(Ward)), dict.fromkeys(SITES, usual))
    for site in SITES:
        spoiled, _ = REFUSED["a label out of range"]
        good = "\n".join([HEADER, *ROWS * 8, ""]).encode()
        (federation.paths[site] / TERMS.file).write_bytes(spoiled if site == "north" else good)
        with (federation.paths[site] / "site.toml").open("a") as settings:
            settings.write('\n[data.source]\nname = "csv"\n')
    (event,) = run_with(federation)
    assert event["problems"] == {
        "north": "“A site's records cannot be used as they are; the reason is in the site's own log”"
    }
    assert event["sites"] == sorted(SITES[1:])
    assert charges_of(federation, "north") == 0
    assert charges_of(federation, "south") == 1
    restart(federation, "north")
    with pytest.raises(DataError, match=r"records\.csv"):
        open_site(federation.paths["north"]).check_records()
