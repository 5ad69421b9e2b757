"""A task is tried before a record is read or charged, and records of another form than it made up are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from privacy.errors import DataError, TaskError
from tests.federations import NOISY, charges_of, node_of, signed_run, task_name
from tests.studies import Tiny

if TYPE_CHECKING:
    from pathlib import Path

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
            "use GroupNorm or LayerNorm"
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
        (torch.ones(5, 2).double(), torch.ones(5, 1), "float64 (n, 2) and float32 (n, 1)",
         ", for example with inputs.float() in load()"),
        (torch.ones(5, 2), torch.ones(5, dtype=torch.int64), "float32 (n, 2) and int64 (n,)",
         f", for example with targets.float() in load(){MAKE_UP}rand(8, 2), torch.randint(0, 2, (8,))"),
        (torch.ones(5, 2), torch.ones(5, 2), "float32 (n, 2) and float32 (n, 2)",
         f"{MAKE_UP}rand(8, 2), torch.rand(8, 2)"),
        (torch.ones(5, 2).numpy(), torch.ones(5, 1), "a numpy.ndarray and float32 (n, 1)",
         ", for example with torch.from_numpy(inputs).float() in load()"),
        (torch.ones(5, 2).numpy(), [[1.0]] * 5, "a numpy.ndarray and a builtins.list",
         ", for example with torch.from_numpy(inputs).float() and torch.tensor(targets).float() in load()"),
        (torch.ones(5, 2), ["well"] * 5, "float32 (n, 2) and a builtins.list", ""),
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


def test_any_number_of_records_with_the_examples_form_is_accepted(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Reading)))
    assert open_site(federation.paths[SITE]).check_records() == {task_name(Reading): 4}
