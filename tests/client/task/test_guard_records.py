"""A task is tried before a record is read or charged, and records of another form than it made up are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from client.task.probe import Example
from privacy.errors import DataError, TaskError
from tests.federations import NOISY, charges_of, node_of, signed_run, task_name
from tests.studies import Tiny

if TYPE_CHECKING:
    from tests.federations import FederationMaker

SITE = "north"


class Dependent(Tiny):
    """Its records interact."""

    read: ClassVar[list[Path]] = []

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(2, affine=False, track_running_stats=False), nn.Linear(2, 1))

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        self.read.append(path)
        return super().load(path)


class Reading(Tiny):
    """Reads whatever a test says."""

    records: ClassVar[tuple[Tensor, Tensor]] = (torch.ones(5, 2), torch.ones(5, 1))

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        return self.records


def test_a_task_that_breaks_privacy_costs_nothing_and_reads_nothing(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Dependent)))
    site = open_site(federation.paths[SITE])
    document, node = signed_run(federation)[0], node_of(federation, SITE)
    for step in (site.check_records, lambda: get_ready(admit(site, document), node)):
        with pytest.raises(TaskError) as caught:
            step()
        assert str(caught.value) == (
            f"{task_name(Dependent)}: its model's layer `0` (BatchNorm1d) mixes the records of a batch; "
            "use GroupNorm or LayerNorm, for example nn.GroupNorm(1, 2)"
        )
    assert Dependent.read == []
    assert charges_of(federation, SITE) == 0


MAKE_UP = "; if load() is right, let example() return for example torch."


@pytest.mark.parametrize(
    ("inputs", "targets", "message", "advice"),
    [
        (torch.ones(5, 3), torch.ones(5, 1), "float32 (n, 3) and float32 (n, 1)",
         f"{MAKE_UP}rand(8, 3), torch.rand(8, 1)"),
        (torch.ones(5), torch.ones(5, 1), "float32 (n,) and float32 (n, 1)", f"{MAKE_UP}rand(8), torch.rand(8, 1)"),
        (torch.ones(5, 2), torch.ones(5, 2), "float32 (n, 2) and float32 (n, 2)",
         f"{MAKE_UP}rand(8, 2), torch.rand(8, 2)"),
        (torch.ones(5, 3).numpy(), [1, 0, 1, 0, 1], "float32 (n, 3) and float32 (n, 1)",
         f"{MAKE_UP}rand(8, 3), torch.rand(8, 1)"),
        (torch.ones(5, 2), "well", "float32 (n, 2) and a builtins.str", ""),
    ],
)  # fmt: skip
def test_records_of_another_form_than_the_examples_are_refused_when_read(
    make_federation: FederationMaker,
    monkeypatch: pytest.MonkeyPatch,
    inputs: Tensor,
    targets: Tensor,
    message: str,
    advice: str,
) -> None:
    monkeypatch.setattr(Reading, "records", (inputs, targets))
    federation = make_federation(replace(NOISY, task=task_name(Reading)))
    with pytest.raises(DataError) as caught:
        open_site(federation.paths[SITE]).check_records()
    assert str(caught.value) == (
        f"{federation.paths[SITE] / 'records.csv'}: the task read inputs and targets {message}, but its example has "
        "float32 (n, 2) and float32 (n, 1); correct one of the two" + advice
    )


@pytest.mark.parametrize(
    ("inputs", "targets", "said"),
    [
        (torch.ones(5, 2).double(), torch.ones(5, 1), "inputs from float64 to float32"),
        (torch.ones(5, 2), torch.ones(5).long(), "targets from int64 to float32"),
        (torch.ones(5, 2).double().numpy(), [1.0] * 5, "inputs from float64 to float32"),
        ([[1, 2]] * 5, [[1.0]] * 5, ""),
    ],
)
def test_other_types_of_numbers_are_converted_with_a_notice(
    make_federation: FederationMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    inputs: object,
    targets: object,
    said: str,
) -> None:
    monkeypatch.setattr(Reading, "records", (inputs, targets))
    federation = make_federation(replace(NOISY, task=task_name(Reading)))
    with caplog.at_level("INFO"):
        assert open_site(federation.paths[SITE]).check_records() == {task_name(Reading): 4}
    assert bool(said) == ("other types of numbers than example(); converted: " in caplog.text)
    assert said in caplog.text


def test_texts_of_another_length_are_to_be_padded() -> None:
    def words(length: int) -> dict[str, Tensor]:
        return {"ids": torch.ones(5, length).long(), "mask": torch.ones(5, length).bool()}

    with pytest.raises(DataError, match="; pad all texts to one length, a constant of the task, in load"):
        Example(words(4), torch.ones(5)).check(words(7), torch.ones(5), Path("notes.csv"))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.ones(5, 2), ["well"] * 5, "the targets are no numbers (<U4); give numbers: numpy.unique"),
        ([[1.0, 2.0], [1.0]], torch.ones(2, 1), "the inputs cannot be read as numbers of one shape; give arrays"),
        (torch.ones(0, 2), torch.ones(0, 1), "the task read no records in it; name one with records"),
        ([], [], "the task read no records in it; name one with records"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, inputs: object, targets: object, message: str
) -> None:
    monkeypatch.setattr(Reading, "records", (inputs, targets))
    with pytest.raises(DataError) as caught:
        open_site(make_federation(replace(NOISY, task=task_name(Reading))).paths[SITE]).check_records()
    assert f"records.csv: {message}" in str(caught.value)


def test_any_number_of_records_with_the_examples_form_is_accepted(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Reading)))
    assert open_site(federation.paths[SITE]).check_records() == {task_name(Reading): 4}
