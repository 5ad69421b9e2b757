"""Every example in docs/records.md works as printed: its task reads the records of its source."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from PIL import Image
from pyarrow import csv, parquet

from client.data.inspection import inspect
from client.settings import read_site
from tests.client.data.sources.test_dicom import dicom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = (Path(__file__).parent.parent / "docs" / "records.md").read_text(encoding="utf-8")
SETTINGS = """\
site = "north"
server = "localhost:1"
device = "cpu"
{data}
[budget]
epsilon = 3.0
delta = 1e-5
[policy]
tasks = ["{task}"]
maximum_epsilon = 3.0
"""
OMOP = """
CREATE TABLE person (person_id INTEGER, year_of_birth INTEGER, gender_concept_id INTEGER);
CREATE TABLE measurement (measurement_id INTEGER, person_id INTEGER, measurement_concept_id INTEGER,
                          measurement_date DATE, value_as_number NUMERIC);
CREATE TABLE condition_occurrence (person_id INTEGER, condition_concept_id INTEGER);
INSERT INTO person VALUES (1, 1950, 8532), (2, 1980, NULL);
INSERT INTO measurement VALUES (1, 1, 3004410, '2024-01-01', 9.5);
INSERT INTO condition_occurrence VALUES (1, 201826)
"""


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def block(language: str, *headings: str) -> str:
    """The first block of a language in the first of these sections that has one."""
    for heading in headings:
        if block_ := re.search(rf"```{language}\n(.*?)```", section(heading), re.DOTALL):
            return block_[1]
    raise AssertionError(headings)


def write_csv(folder: Path) -> None:
    (folder / "patients.csv").write_text(block("csv", "Source: csv"), encoding="utf-8")


def write_parquet(folder: Path) -> None:
    options = csv.ConvertOptions(timestamp_parsers=["%d.%m.%Y"], decimal_point=",")
    write_csv(folder)
    table = csv.read_csv(
        folder / "patients.csv", parse_options=csv.ParseOptions(delimiter=";"), convert_options=options
    )
    assert pa.types.is_timestamp(table.schema.field("admitted").type)
    parquet.write_table(table.rename_columns({"alter": "age"}), folder / "patients.parquet")


def write_sql(folder: Path) -> None:
    (folder / "cohort.sql").write_text(block("sql", "Source: sql"), encoding="utf-8")
    engine = sa.create_engine(f"sqlite:///{folder}/omop.db", poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in OMOP.split(";"):
            connection.exec_driver_sql(statement)


def write_fhir(folder: Path) -> None:
    (folder / "bundles").mkdir()
    (folder / "bundles" / "1.json").write_text(block("json", "Source: fhir"), encoding="utf-8")


def write_images(folder: Path) -> None:
    (folder / "images" / "scans").mkdir(parents=True)
    (folder / "images" / "labels.csv").write_text(block("csv", "Declare images"), encoding="utf-8")
    for number in (1, 2):
        Image.new("RGB", (50, 40), (number, 20, 30)).save(folder / "images" / "scans" / f"000{number}.png")


def write_dicom(folder: Path) -> None:
    for patient in ("p1", "p2"):
        (folder / "scans" / patient).mkdir(parents=True)
        for place in range(4):
            data = dicom(np.full((20, 20), place, np.int16), ImagePositionPatient=[0, 0, place])
            data.save_as(folder / "scans" / patient / f"{place}.dcm", enforce_file_format=True)
    (folder / "scans" / "labels.csv").write_text("file,finding\np1,none\np2,nodule\n")


def write_nifti(folder: Path) -> None:
    (folder / "volumes").mkdir()
    for patient in ("p1", "p2"):
        image: Any = nibabel.Nifti1Image(np.zeros((9, 8, 7), np.int16), np.eye(4))  # type: ignore[no-untyped-call]
        nibabel.save(image, folder / "volumes" / f"{patient}.nii.gz")
    (folder / "volumes" / "labels.csv").write_text("file,lesion\np1.nii.gz,yes\np2.nii.gz,no\n")


WRITERS: dict[str, Callable[[Path], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "sql": write_sql,
    "fhir": write_fhir,
    "images": write_images,
    "dicom": write_dicom,
    "nifti": write_nifti,
}


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module of tasks, as a site would have installed it."""
    module_ = ModuleType("records_example")
    sys.modules[module_.__name__] = module_
    yield module_
    del sys.modules[module_.__name__]


def test_there_is_an_example_for_every_source() -> None:
    assert re.findall(r"^## Source: (\w+)$", TEXT, re.MULTILINE) == list(WRITERS)


@pytest.mark.parametrize("source", WRITERS)
def test_the_task_reads_the_records_of_the_source(source: str, module: ModuleType, tmp_path: Path) -> None:
    exec(block("python", f"Source: {source}", "Declare a table"), vars(module))  # noqa: S102 - our own document
    (task,) = (name for name, kind in vars(module).items() if getattr(kind, "__module__", "") == module.__name__)
    data = block("toml", f"Source: {source}").replace(
        "postgresql+psycopg://reader@db.example.org/omop", "sqlite:///omop.db"
    )
    (tmp_path / "site.toml").write_text(SETTINGS.format(data=data, task=f"{module.__name__}:{task}"), encoding="utf-8")
    WRITERS[source](tmp_path)
    report = inspect(read_site(tmp_path), f"{module.__name__}:{task}")
    assert report["problems"] == []
    assert report["records"] == 2
