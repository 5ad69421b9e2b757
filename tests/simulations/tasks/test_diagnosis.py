"""The reference study: its constants are the published ones, its patients are at one hospital each, and it learns."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from client.data.held_out import split_held_out
from client.task.task import import_task
from privacy.errors import ConfigError, DataError
from simulations.tasks.diagnosis import HALF_WIDTH, RANGES, TARGET, Diagnosis, scale
from simulations.tasks.hospitals import DECLARED_SIZES, FILE_NAME, write_hospital_records

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

COUNTS = {"north": 280, "south": 170, "east": 119}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hospitals")
    folders = {name: root / name / "data" for name in DECLARED_SIZES}
    assert write_hospital_records(folders) == COUNTS
    return folders


def test_the_ranges_are_those_that_the_documentation_prints() -> None:
    data: Any = load_breast_cancer()
    printed = [line.split(":")[1].split() for line in data.DESCR.splitlines() if "):  " in line]
    assert list(RANGES) == [name.replace(" ", "_") for name in data.feature_names]
    assert list(RANGES.values()) == [(float(low), float(high)) for low, high in printed]


def test_scaling_looks_at_one_record_at_a_time_and_never_leaves_its_range() -> None:
    records = torch.from_numpy(load_breast_cancer(return_X_y=True)[0]).float()
    records[0], records[1] = -1e30, 1e30
    scaled = scale(records)
    assert scaled.abs().max() <= HALF_WIDTH
    torch.testing.assert_close(scaled, torch.cat([scale(record[None]) for record in records]))


def test_every_patient_is_at_exactly_one_hospital(folders: dict[str, Path]) -> None:
    table, benign = load_breast_cancer(return_X_y=True)
    patients = []
    for folder in folders.values():
        with (folder / FILE_NAME).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                patient = int(row["patient"])
                assert [float(row[name]) for name in RANGES] == table[patient].tolist()
                assert int(row[TARGET]) == 1 - benign[patient]
                patients.append(patient)
    assert sorted(patients) == list(range(569))


def test_the_same_patients_are_dealt_to_the_same_hospital_in_every_version(folders: dict[str, Path]) -> None:
    malignant = {name: Diagnosis().load(folder / FILE_NAME)[1].sum().item() for name, folder in folders.items()}
    assert malignant == {"north": 85, "south": 62, "east": 65}


def test_one_hospital_can_be_written_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    assert write_hospital_records({"east": tmp_path}) == {"east": COUNTS["east"]}
    assert (tmp_path / FILE_NAME).read_bytes() == (folders["east"] / FILE_NAME).read_bytes()


def test_an_unknown_hospital_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no hospital 'west'; choose one of north, south, east"):
        write_hospital_records({"north": tmp_path / "north", "west": tmp_path / "west"})
    assert not list(tmp_path.iterdir())


def test_the_declared_sizes_are_the_counts_to_the_nearest_ten() -> None:
    assert {name: round(count, -1) for name, count in COUNTS.items()} == DECLARED_SIZES


def test_a_diagnosis_that_is_not_a_class_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    lines = (folders["east"] / FILE_NAME).read_text().splitlines()
    path = tmp_path / FILE_NAME
    path.write_text("\n".join([*lines[:2], lines[2][:-1] + "3"]))
    with pytest.raises(DataError, match=":3: `malignant` is 3, which is not a class"):
        Diagnosis().load(path)


def test_loss_is_the_mean_of_one_term_for_each_record_and_metrics_are_per_record() -> None:
    task = Diagnosis()
    outputs, targets = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [1.0], [0.0]])
    terms = [task.loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(task.loss(outputs, targets), torch.stack(terms).mean())
    assert task.metrics(outputs, targets)["accuracy"].tolist() == [1.0, 0.0, 0.0]


def test_without_privacy_the_pooled_records_are_learned(folders: dict[str, Path]) -> None:
    task = import_task("simulations.tasks.diagnosis:Diagnosis")
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for folder in folders.values():
        loaded: Any = task.load(folder / FILE_NAME)
        inputs, targets = loaded
        train, held_out = (torch.from_numpy(part) for part in split_held_out(len(inputs), 0.2))
        parts.append((inputs[train], targets[train], inputs[held_out], targets[held_out]))
    inputs, targets, held_inputs, held_targets = (torch.cat(part) for part in zip(*parts, strict=True))
    assert (inputs.shape, held_inputs.shape) == ((455, 30), (114, 30))
    torch.manual_seed(0)
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    accuracy = np.mean(task.metrics(model(held_inputs), held_targets)["accuracy"].tolist())
    assert accuracy >= 0.96
