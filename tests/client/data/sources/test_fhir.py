"""FHIR bundles become one row per patient; what cannot be used is named without a value."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from client.data.columns import AnyColumn, Category, Date, Flag, Number
from client.data.sources.options import Fhir
from tests.client.data.sources.cohorts import SECRET, Ward, complaint, problems, read

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"


class Diabetes(Ward):
    """Who has diabetes, from birth, sex, glucose, systolic pressure and smoking."""

    columns: ClassVar[Sequence[AnyColumn]] = [
        Date("birth", low=date(1920, 1, 1), high=date(2020, 1, 1), code="Patient.birthDate"),
        Category("sex", ["female", "male"], other="other", code="Patient.gender"),
        Number("glucose", low=0, high=20, missing=5, unit="mmol/L", convert={"mg/dL": 0.05},
               code="Observation?code=loinc|2339-0"),
        Number("systolic", low=0, high=200, missing=100, code="Observation?code=loinc|8480-6"),
        Category("smoking", ["266919005"], other="other", missing="other", code="Observation?code=loinc|72166-2"),
    ]  # fmt: skip
    target = Flag("diabetes", code="Condition?code=snomed|44054006")


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def patient(key: str = "b", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"resourceType": "Patient", "id": key, "birthDate": "1970-01-01", "gender": "male", **changes}


def observation(code: str, subject: str = "Patient/b", **rest: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": concept(LOINC, code),
        "subject": {"reference": subject},
        "effectiveDateTime": "2024-05-01",
    } | rest


def condition(subject: str = "Patient/b", **rest: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {
        "resourceType": "Condition", "code": concept(SNOMED, "44054006"), "subject": {"reference": subject}, **rest,
    }  # fmt: skip


def quantity(value: object, unit: str | None = "mmol/L") -> dict[str, Any]:
    return {"valueQuantity": {"value": value} | ({"code": unit} if unit else {})}


def write(folder: Path, *resources: Any, name: str = "bundle.json") -> Path:  # noqa: ANN401 - JSON
    entries = [{"fullUrl": f"urn:uuid:{at}", "resource": resource} for at, resource in enumerate(resources)]
    (folder / name).write_text(json.dumps({"resourceType": "Bundle", "entry": entries}))
    return folder / name


def row(folder: Path, *resources: Any) -> list[float]:  # noqa: ANN401 - JSON
    """The inputs of the only patient, and whether there is diabetes."""
    inputs, targets = read(write(folder, *resources), Fhir(), Diabetes())
    return [*(round(value, 2) for value in inputs[0].tolist()), targets.item()]


def test_a_patient_is_one_row_and_missing_values_become_the_tasks_constants(tmp_path: Path) -> None:
    assert row(tmp_path, patient()) == [0, 0, 1, 0, -0.5, 0, 0, 1, 0]
    full = (
        observation("2339-0", **quantity(100, "mg/dL")),
        observation("85354-9", component=[
            {"code": concept(LOINC, "8462-4"), **quantity(1)},
            {"code": concept(LOINC, "8480-6"), **quantity(150, None)},
        ]),
        observation("72166-2", valueCodeableConcept=concept(SNOMED, "266919005")),
        condition(),
    )  # fmt: skip
    assert row(tmp_path, *full, patient(birthDate="1970", gender="other")) == [0, 0, 0, 1, -0.5, 0.5, 1, 0, 1]


@pytest.mark.parametrize("turned", [False, True])
def test_the_latest_valid_observation_counts_in_whatever_order_they_come(tmp_path: Path, turned: bool) -> None:  # noqa: FBT001
    observations = [
        observation("2339-0", effectiveDateTime="2024-05-01T23:30:00-05:00", **quantity(15)),
        observation("2339-0", effectiveDateTime="2024-05-02T01:00:00Z", **quantity(1)),
        observation("2339-0", effectiveDateTime="2024-06-01", status="entered-in-error", **quantity(2)),
        observation("2339-0", effectiveDateTime=None, **quantity(3)),
        condition(verificationStatus=concept("x", "refuted")),
        patient(),
    ]
    assert row(tmp_path, *(observations[::-1] if turned else observations))[4:] == [0.5, 0, 0, 1, 0]


def test_references_may_be_relative_absolute_or_to_an_entry_of_the_bundle(tmp_path: Path) -> None:
    for subject in ("Patient/b", "https://fhir.example.org/r4/Patient/b", "Patient/b/_history/2", "urn:uuid:1"):
        assert row(tmp_path, condition(subject), patient())[-1] == 1
    message = complaint(write(tmp_path, condition("Patient/other"), patient()), Fhir(), Diabetes())
    assert message.startswith("bundle.json: wanted observations or conditions are about 1 without a Patient resource")


def test_a_folder_of_bundles_and_of_bulk_exports_gives_patients_in_the_order_of_their_ids(tmp_path: Path) -> None:
    write(tmp_path, patient("b"), condition("Patient/a"), name="1.json")
    write(tmp_path, patient("b"), name="2.json")  # again, and the same
    lines = [patient("a", birthDate="1920-01-01"), observation("2339-0", "Patient/a", **quantity(20))]
    (tmp_path / "3.ndjson").write_text("\n".join(map(json.dumps, lines)))
    inputs, targets = read(tmp_path, Fhir(), Diabetes())
    assert targets.tolist() == [[1], [0]]
    assert inputs[:, [0, 4]].tolist() == [[-1, 1], [pytest.approx(0, abs=1e-2), -0.5]]
    write(tmp_path, patient("b", gender="female"), name="4.json")
    assert complaint(tmp_path, Fhir(), Diabetes()).endswith(
        "entry 1 of file 4 (in order of names) differs from an earlier one; of the same patient; keep one of them"
    )


def test_every_problem_has_its_patient_and_column_and_never_the_value(tmp_path: Path) -> None:
    resources = (
        patient("a", birthDate=SECRET), patient("b", gender=None), patient("c"), patient("d"),
        observation("2339-0", "Patient/b", **quantity(SECRET)),
        observation("2339-0", "Patient/c", **quantity(5, SECRET)),
        observation("2339-0", "Patient/d", valueQuantity={"value": {"x": SECRET}}),
    )  # fmt: skip
    listed = problems(write(tmp_path, *resources), Fhir(), Diabetes())
    assert not any(SECRET in problem for problem in listed)
    assert [problem.partition(";")[0] for problem in listed] == [
        "bundle.json, patient 1, column `birth`: not a date written as 2024-12-31",
        "bundle.json, patient 2, column `sex`: no value",
        "bundle.json, patient 2, column `glucose`: not a number",
        "bundle.json, patient 3, column `glucose`: in a unit that the task does not declare",
        "bundle.json, patient 4, column `glucose`: not a number",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "file 1 (in order of names) is empty; copy it again, or move it away"),
        ("{", "file 1 (in order of names) is not JSON; it may have been cut; copy it again"),
        ('{"resourceType": "Bundle", "entry": [', "is not JSON; it may have been cut"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "file 1 (in order of names) is not a FHIR bundle"),
        ('{"resourceType": "Bundle", "entry": [1]}', "entry 1 of file 1 (in order of names) is not a FHIR resource"),
        ('{"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Patient"}}]}', "entry 1 of file 1"),
        ('{"resourceType": "Bundle"}', "there is no Patient resource; add one for each record, or name other bundles"),
        ('{"resourceType": "Patient", "id": NaN}', "is not JSON"),
    ],
)
def test_files_that_are_not_bundles_are_refused(tmp_path: Path, data: str, message: str) -> None:
    (tmp_path / "bundle.json").write_text(data)
    assert message in complaint(tmp_path / "bundle.json", Fhir(), Diabetes())


def test_an_observation_without_a_value_leaves_the_one_before(tmp_path: Path) -> None:
    absent: dict[str, Any] = {"dataAbsentReason": concept("x", "not-performed")}
    pressure, unknown = ([{"code": concept(LOINC, "8480-6"), **value}] for value in (quantity(150, None), absent))
    assert row(
        tmp_path, patient(), observation("2339-0", **quantity(15)),
        observation("2339-0", effectiveDateTime="2024-06-01", **absent),
        observation("2339-0", effectiveDateTime="2024-07-01", valueQuantity={"unit": "mmol/L"}),
        observation("85354-9", component=pressure),
        observation("85354-9", effectiveDateTime="2024-06-01", component=unknown),
    )[4:6] == [0.5, 0.5]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"valueRange": {"low": {"value": 5}, "high": {"value": 6}}}, "not a number"),
        ({"valueRatio": {"numerator": {"value": 1}}}, "not a number"),
        ({"valueString": "5 mmol/L"}, "not a number"),
        ({"valueQuantity": {"value": 5, "unit": "g/L"}}, "in a unit that the task does not declare"),
        ({"valueQuantity": {"value": 5, "code": "mmol/l"}}, "in a unit that the task does not declare"),
        ({"valueQuantity": {"value": [5]}}, "not a number"),
    ],
)
def test_other_values_and_units_are_refused(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    path = write(tmp_path, patient(), observation("2339-0", **value))
    assert complaint(path, Fhir(), Diabetes()).startswith(f"bundle.json, patient 1, column `glucose`: {message}")


def test_a_limit_is_no_value(tmp_path: Path) -> None:
    below: dict[str, Any] = {"valueQuantity": {"value": 7, "code": "mmol/L", "comparator": "<"}}
    path = write(tmp_path, patient(), observation("2339-0", **below))
    assert complaint(path, Fhir(), Diabetes()).startswith("bundle.json, patient 1, column `glucose`: not a number")


def test_codes_may_be_the_sites_own_and_others_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, patient(deceasedDateTime="2024-01-01"))
    options = Fhir(columns={"diabetes": "Patient.deceased"})
    assert read(path, options, Diabetes())[1].item() == 1
    for code in ("Patient.name", "Observation?code=2339-0", "glucose"):
        message = complaint(path, Fhir(columns={"glucose": code}), Diabetes())
        assert message.startswith("bundle.json: the code of column `glucose` is none that this source reads; write")
    assert "the task's column `ward` has no code" in complaint(path, Fhir(columns={"age": "Patient.active"}))
