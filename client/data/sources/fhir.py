"""FHIR resources as a table with one row per patient, in the order of their ids.

    Patient.birthDate, Patient.gender, …        the patient's own
    Observation?code=loinc|2339-0               the value of the latest such observation, or component, that has one
    Condition?code=snomed|44054006              true if the patient was ever found to have it, else false

A column's code says which, in the task or under `[data.source.columns]`. Files are bundles (`.json`) or lines of
resources (`.ndjson`, a bulk export).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from client.data.sources.chunks import Chunk, Table, array_of
from privacy.failures import reason
from privacy.storage import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_SYSTEMS = {
    "loinc": "http://loinc.org",
    "snomed": "http://snomed.info/sct",
    "icd-10": "http://hl7.org/fhir/sid/icd-10",
    "icd-10-cm": "http://hl7.org/fhir/sid/icd-10-cm",
}
_CODE = re.compile(r"(?P<kind>Observation|Condition)\?code=(?P<system>[^|]+)\|(?P<code>\S+)")
_OWN = ("birthDate", "gender", "active", "deceased", "maritalStatus")
_VOID = {"entered-in-error", "cancelled", "refuted"}
_MOST = 1 << 28  # bytes of a file, and of a line
_ROWS = 10_000  # at a time


@dataclass(frozen=True)
class _Wanted:
    """A column: of a patient, or a code of an observation or condition."""

    kind: str
    system: str
    code: str


_Observation = tuple[tuple[float, str], Any, str | None]
"""When something was observed (and the resource's id), its value and its unit."""


@dataclass
class _Patients:
    """What was found so far. References are as resources write them, relative or absolute."""

    own: dict[str, dict[str, Any]] = field(default_factory=dict)  # by id
    values: dict[str, dict[str, _Observation]] = field(default_factory=dict)  # by reference, and by column
    aliases: dict[str, str] = field(default_factory=dict)  # from the URL of a bundle's entry to the id

    def of(self, reference: str) -> str | None:
        """Return the id of the patient that a reference means, None if there is no such patient."""
        key = self.aliases.get(reference, reference.partition("Patient/")[2].partition("/")[0])
        return key if key in self.own else None

    def rows(self) -> list[tuple[dict[str, Any], dict[str, _Observation]]]:
        """Return what each patient has, in the order of their ids."""
        values_of: dict[str, dict[str, _Observation]] = {key: {} for key in sorted(self.own)}
        for reference, values in self.values.items():
            mine = values_of[self.of(reference) or ""]
            for column, value in values.items():
                if column not in mine or mine[column][0] < value[0]:
                    mine[column] = value
        return [(self.own[key], values) for key, values in values_of.items()]


class FhirTable(Table):
    """Patients, with the values of the wanted codes."""

    row = "patient"
    nothing = ("there is no Patient resource", "add one for each record, or name other bundles")

    @override
    def chunks(self, wanted: Mapping[str, str | None]) -> Iterator[Chunk]:
        columns = {name: self._wanted(name, code) for name, code in wanted.items()}
        patients = _Patients()
        for number, path in enumerate(self._paths(), 1):
            for entry, (key, resource) in enumerate(self._resources(path, number), 1):
                try:
                    self._take(patients, columns, key, resource)
                except _DifferingError:
                    problem = f"entry {entry} of file {number} (in order of names) differs from an earlier one"
                    self.fail(problem, "of the same patient; keep one of them")
                except (TypeError, AttributeError, ValueError, KeyError, RecursionError):
                    problem = f"entry {entry} of file {number} (in order of names) is not a FHIR resource"
                    self.fail(problem, "correct it, or leave it out")
        if strangers := sum(patients.of(reference) is None for reference in patients.values):
            problem = f"wanted observations or conditions are about {strangers:,} without a Patient resource here"
            self.fail(problem, "add these, or leave the others out")
        rows = patients.rows()
        for start in range(0, len(rows), _ROWS):
            yield _chunk(rows[start : start + _ROWS], columns, start + 1)

    def _wanted(self, name: str, code: str | None) -> _Wanted:
        code = self.options.columns.get(name, code)
        forms = "write Patient.gender, Observation?code=loinc|2339-0 or Condition?code=snomed|44054006"
        if code is None:
            problem = f"the task's column `{name}` has no code"
            self.fail(problem, f"give it one in the task, or in [data.source.columns]; {forms}")
        if match := _CODE.fullmatch(code):
            return _Wanted(match["kind"], _SYSTEMS.get(match["system"], match["system"]), match["code"])
        kind, _, own = code.partition(".")
        if kind != "Patient" or own not in _OWN:
            self.fail(f"the code of column `{name}` is none that this source reads", forms)
        return _Wanted(kind, "", own)

    def _paths(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        paths = sorted(path for path in self.path.iterdir() if path.suffix in {".json", ".ndjson"})
        if not paths:
            self.fail("this folder has no file *.json or *.ndjson", "name another, or one file")
        return paths

    def _resources(self, path: Path, number: int) -> Iterator[tuple[str, Any]]:
        """Yield a file's resources, each with the URL under which others may refer to it."""
        try:
            with open_file(path) as file:
                if path.suffix == ".ndjson":
                    while line := file.readline(_MOST):
                        if line.strip():
                            yield "", self._parsed(line, number)
                    return
                data = file.read(_MOST + 1)
        except OSError as error:
            self.fail(reason(error), "name FHIR files that this account can read")
        if len(data) > _MOST:
            self.fail(f"file {number} (in order of names) has more than {_MOST >> 20} MiB", "split the bundle")
        whole = self._parsed(data, number)
        if not isinstance(whole, dict):
            self.fail(f"file {number} (in order of names) is not a FHIR bundle", "correct it, or move it away")
        if whole.get("resourceType") != "Bundle":
            yield "", whole
            return
        for entry in whole.get("entry") or ():
            resource = entry.get("resource") if isinstance(entry, dict) else None
            yield str(entry.get("fullUrl", "")) if resource else "", resource

    def _parsed(self, data: bytes, number: int) -> Any:  # noqa: ANN401 - JSON
        if not data.strip():
            self.fail(f"file {number} (in order of names) is empty", "copy it again, or move it away")
        try:
            return json.loads(data.decode("utf-8-sig"), parse_constant=_refused)
        except (ValueError, RecursionError):  # of Unicode, too
            problem = f"file {number} (in order of names) is not JSON"
            self.fail(problem, "it may have been cut; copy it again")

    def _take(self, patients: _Patients, columns: Mapping[str, _Wanted], key: str, resource: Any) -> None:  # noqa: ANN401
        """Keep what is wanted of a resource, which is JSON; `key` is its URL in the bundle."""
        kind = resource["resourceType"]
        if kind == "Patient":
            names = {wanted.code for wanted in columns.values() if wanted.kind == "Patient"}
            own, patient = {name: _own(resource, name) for name in names}, str(resource["id"])
            if patients.own.setdefault(patient, own) != own:
                raise _DifferingError
            if key:
                patients.aliases[key] = patient
        elif kind in {"Observation", "Condition"}:
            for name, wanted in columns.items():
                if wanted.kind == kind and (measured := _observation(resource, wanted)) is not None:
                    values = patients.values.setdefault(str(resource["subject"]["reference"]), {})
                    if name not in values or values[name][0] < measured[0]:
                        values[name] = measured


class _DifferingError(Exception):
    """Two resources of one patient differ."""


def _chunk(
    patients: list[tuple[dict[str, Any], dict[str, _Observation]]], columns: Mapping[str, _Wanted], start: int
) -> Chunk:
    arrays, units = dict[str, Any](), dict[str, list[str | None]]()
    for name, wanted in columns.items():
        if wanted.kind == "Patient":
            arrays[name] = array_of([own[wanted.code] for own, _ in patients])
            continue
        nothing: _Observation = ((0.0, ""), False if wanted.kind == "Condition" else None, None)
        cells = [values.get(name, nothing) for _, values in patients]
        arrays[name], units[name] = array_of([value for _, value, _ in cells]), [unit for _, _, unit in cells]
    return Chunk(arrays, range(start, start + len(patients)), units=units)


def _own(patient: Any, name: str) -> Any:  # noqa: ANN401 - JSON
    if name == "deceased":
        return patient.get("deceasedBoolean", True if "deceasedDateTime" in patient else None)
    value = patient.get(name)
    return _coded(value) if isinstance(value, dict) else _whole_day(value) if name == "birthDate" else value


def _observation(resource: Any, wanted: _Wanted) -> _Observation | None:  # noqa: ANN401
    """Return when something wanted was observed, its value and its unit; None if it is not wanted."""
    void = {resource.get("status")} | {
        coding.get("code") for coding in resource.get("verificationStatus", {}).get("coding", ())
    }
    if void & _VOID:
        return None
    when = _when(resource), str(resource.get("id", ""))
    if wanted.kind == "Condition":
        return (when, True, None) if _has(resource.get("code"), wanted) else None
    for part in (resource, *resource.get("component", ())):
        if _has(part.get("code"), wanted):
            value, unit = _value(part)
            return None if value is None else (when, value, unit)  # an earlier one may have a value
    return None


def _has(concept: Any, wanted: _Wanted) -> bool:  # noqa: ANN401
    codings = (concept or {}).get("coding", ())
    return any((coding.get("system"), coding.get("code")) == (wanted.system, wanted.code) for coding in codings)


def _value(observed: Any) -> tuple[Any, str | None]:  # noqa: ANN401
    """Return an observation's value and its unit."""
    if (quantity := observed.get("valueQuantity")) is not None:
        value, bound = quantity.get("value"), quantity.get("comparator")  # "<" says that the value is only a limit
        return f"{bound}{value}" if bound else value, quantity.get("code") or quantity.get("unit")
    if "valueCodeableConcept" in observed:
        return _coded(observed["valueCodeableConcept"]), None
    kinds = ("valueBoolean", "valueInteger", "valueString", "valueDateTime")
    other: Any = {} if any(key.startswith("value") for key in observed) else None  # such as a range: no column takes it
    return next((_whole_day(observed[kind]) for kind in kinds if kind in observed), other), None


def _coded(concept: Any) -> Any:  # noqa: ANN401
    return next((coding.get("code") for coding in concept.get("coding", ())), concept.get("text"))


def _when(resource: Any) -> float:  # noqa: ANN401
    """Return when something was observed, in seconds since 1970; if it does not say, before everything else."""
    text = resource.get("effectiveDateTime") or resource.get("effectiveInstant")
    text = text or resource.get("effectivePeriod", {}).get("start")
    if not text:
        return float("-inf")
    at = datetime.fromisoformat(_whole_day(text))
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _whole_day(value: Any) -> Any:  # noqa: ANN401
    """Return the first day of a year or month that stands for a date."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}(-\d{2})?", value):
        return value
    return f"{value}-01-01"[:10]


def _refused(constant: str) -> None:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError(constant)
