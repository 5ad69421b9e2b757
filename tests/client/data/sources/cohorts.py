"""Tasks over made-up cohorts, and the tables that they read."""

from __future__ import annotations

from datetime import date
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.columns import AnyColumn, Category, Date, Flag, Number
from client.data.sources.chunks import Problem
from client.data.sources.listed_files import ImageRecords
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Findings, read_tensors
from client.task.image_task import ImageTask
from client.task.table_task import TableTask
from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.data.sources.options import ListedOptions, TableOptions

HEADER = "age,glucose,ward,smoker,admitted,outcome"
ROWS = ("18,4.0,surgery,yes,2020-01-01,well", "100,12.0,medicine,no,2025-01-01,ill", "59,,oncology,TRUE,2022-07-02,ill")
SECRET = "4711-Smith"  # noqa: S105 - stands in cells that no message may quote


class Ward(TableTask):
    """One column of every kind."""

    columns: ClassVar[Sequence[AnyColumn]] = [
        Number("age", low=18, high=100, code="Patient.age"),
        Number("glucose", low=2, high=12, missing=7, unit="mmol/L", convert={"mg/dL": 0.0555},
               code="Observation?code=loinc|2339-0"),
        Category("ward", ["surgery", "medicine"], other="other", missing="medicine"),
        Flag("smoker", missing=False, code="Condition?code=snomed|77176002"),
        Date("admitted", low=date(2020, 1, 1), high=date(2025, 1, 1), code="Patient.birthDate"),
    ]  # fmt: skip
    target: ClassVar[AnyColumn | Sequence[AnyColumn]] = Category("outcome", ["well", "ill"])

    @override
    def model(self) -> nn.Module:
        return nn.Linear(self.width, 2)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


class Visits(Ward):
    """Of each patient, several rows."""

    person = "patient"


INPUTS = [[-1.0, -0.6, 1, 0, 0, 1, -1.0], [1.0, 1.0, 0, 1, 0, 0, 1.0], [0.0, 0.0, 0, 0, 1, 1, 0.0]]
"""What `ROWS` become, up to a day's rounding."""
TARGETS = [0, 1, 1]


class Picture(ImageTask):
    """Small grey images of two kinds."""

    size: ClassVar[tuple[int, ...]] = (4, 6)
    label = Category("label", ["benign", "malignant"])

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 2))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


def read(path: Path, options: TableOptions | ListedOptions, task: TableTask | ImageTask | None = None) -> list[Tensor]:
    """The records that a task reads."""
    loaded: Any = (task or Ward()).load_from(Source(path, options))
    if isinstance(loaded, ImageRecords):
        images, labels = zip(*(loaded[index] for index in range(len(loaded))), strict=True)
        return [torch.stack(images), torch.stack(labels)]
    return list(loaded)


def complaint(path: Path, options: TableOptions | ListedOptions, task: TableTask | ImageTask | None = None) -> str:
    """The error that a task raises instead, without the folder."""
    with pytest.raises(DataError) as caught:
        read(path, options, task)
    message = str(caught.value)
    assert SECRET not in message
    assert "\n" not in message
    return message.replace(f"{path.parent}/", "")


def problems(path: Path, options: TableOptions, task: TableTask | None = None) -> list[str]:
    """Every problem that `cloister data check` would list."""
    findings, task = Findings(), task or Ward()
    table = Source(path, options).table()
    read_tensors(table, task.declared, findings)
    found = [(row, kind) for kind, (_, *rows) in findings.kinds.items() for row in rows]
    sentences = (Problem(row, *kind).sentence(path, table.row) for row, kind in sorted(found, key=itemgetter(0)))
    return [sentence.replace(f"{path.parent}/", "") for sentence in sentences]
