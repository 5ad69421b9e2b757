"""A label that the task's metrics cannot mean is refused before anything is charged, wherever the records are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typing_extensions import override

from client.data.fitness import Fitness
from client.data.own_records import check_loaded
from client.flower import open_site
from client.task.probe import Example, make_model
from privacy.errors import DataError
from tests.client.task.test_scoring import Binary, Many, Survival
from tests.federations import NOISY, SITES, TERMS, charges_of, run_with, task_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.task.task import Task
    from tests.federations import FederationMaker

COUNT, SITE = 90, SITES[0]
HALVES = torch.arange(COUNT) % 2
THIRDS = torch.arange(COUNT) % 3
TIMES = torch.stack([torch.arange(COUNT) % 4, HALVES], 1).float()
LATE, TWICE = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
ONE = (torch.arange(COUNT) == 70).int()


class Percent(Binary):
    """A value whose range is public."""

    named_metrics: ClassVar[Sequence[str]] = ("rmse",)
    target_range = (0, 1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets)


def checked(task: Task, targets: Tensor, *, in_memory: bool = True, quoting: bool = False) -> Fitness:
    inputs = torch.rand(COUNT, 2)
    loaded = (inputs, targets) if in_memory else TensorDataset(inputs, targets)
    records = check_loaded(loaded, "package:Class", Example.of(task), Path("records")).records
    fitness = Fitness(task, "package:Class", make_model(task, 0), quoting=quoting)
    fitness.check(records, range(1, COUNT + 1), Path("records"))
    return fitness


def column(labels: Tensor) -> Tensor:
    return labels.float()[:, None]


WRONG: dict[str, tuple[type[Task], Tensor, int, str]] = {
    "from 1": (Binary, column(HALVES + 1), 2, "labels are 1 to 2, but the task's classes are 0 and 1; subtract 1 from"),
    "signs": (Binary, column(HALVES * 2 - 1), 1, "labels are -1 to 1, but the task's classes are 0 and 1; number them"),
    "one": (
        Binary,
        column(HALVES + 7 * ONE),
        71,
        "its label is out of range, and the task's classes are 0 and 1",
    ),
    "half": (Binary, column(HALVES + ONE / 2), 71, "its label is not a whole number, and the task's classes are 0 and"),
    "halves": (Binary, column(HALVES / 2), 2, "labels are not whole numbers, but the task's classes are 0 and 1; make"),
    "three": (Many, THIRDS + 1, 3, "labels are 1 to 3, but the model has 3 outputs, for 0 to 2; subtract 1 from them"),
    "more": (Many, THIRDS * 2, 3, "for 0 to 2; number them 0 to 2 in load(), or give the model 5 outputs"),
    "late": (
        Survival,
        TIMES + LATE,
        3,
        "intervals are 2 to 5, but the model has 4 outputs, for 0 to 3; put later",
    ),
    "all late": (Survival, TIMES * 0 + 9, 1, "all intervals are 9, but the model has 4 outputs, for 0 to 3; put later"),
    "late one": (
        Survival,
        TIMES + 9 * ONE[:, None] * LATE,
        71,
        "its interval is out of range, and the model has 4",
    ),
    "events": (Survival, TIMES + TWICE, 2, "events are 1 to 2, but an event is 1, or 0 if there was none; subtract 1"),
}


@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "data set"])
@pytest.mark.parametrize("case", WRONG)
def test_a_label_that_the_metrics_cannot_mean_is_named_with_what_to_do(case: str, *, in_memory: bool) -> None:
    kind, targets, number, problem = WRONG[case]
    with pytest.raises(DataError) as caught:
        checked(kind(), targets, in_memory=in_memory)
    sentence = str(caught.value)
    assert f"records: package:Class cannot use the target of record {number}, in the order" in sentence
    assert problem in sentence


def test_a_single_record_s_label_is_shown_only_where_asked_for() -> None:
    with pytest.raises(DataError, match=r"record 71, .*: its label is 7131, but the task's classes are 0 and 1"):
        checked(Binary(), column(torch.where(ONE > 0, 7131, HALVES)), quoting=True)
    with pytest.raises(DataError) as caught:
        checked(Binary(), column(torch.where(ONE > 0, 7131, HALVES)))
    assert "7131" not in str(caught.value)


def test_right_labels_and_values_beyond_the_public_range_are_taken() -> None:
    for task, targets in ((Binary(), column(HALVES)), (Many(), THIRDS), (Survival(), TIMES)):
        assert not checked(task, targets).clamped
    assert checked(Percent(), column(HALVES * 50)).clamped == list(range(2, COUNT + 1, 2))


def test_such_labels_cost_a_site_nothing_and_the_others_go_on(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Binary)))
    for site, path in federation.paths.items():
        rows = [f"1,2,{int(site == SITE)}", f"3,4,{1 + int(site == SITE)}"] * 10
        (path / TERMS.file).write_text("\n".join(["a,b,y", *rows, ""]), encoding="utf-8")
    (event,) = run_with(federation)
    assert event["sites"] == sorted(SITES[1:])
    assert charges_of(federation, SITE) == 0
    with pytest.raises(DataError, match=r"labels are 1 to 2, .*; subtract 1 from them in load\(\)"):
        open_site(federation.paths[SITE]).study(task_name(Binary)).check_usable()
