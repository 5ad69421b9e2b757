"""`cloister plan`, whose measurement is a server and agents as processes; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from client.data.inputs import tensors
from simulations.planning.records import repeated
from simulations.pools import Pool

if TYPE_CHECKING:
    from tests.cloister.in_process import Run

ROOT = Path(__file__).parents[3]
RUN = ROOT / "simulations" / "tasks" / "diagnosis.toml"


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_plan_measures_a_few_rounds_and_states_what_the_run_will_cost(cloister: Run) -> None:
    shown = cloister("plan", RUN, "--seconds", "1", "--cpu-hour", "0.05", "--gigabyte", "0.09", "--json")
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout)
    assert report["measured"][0]["rounds"] >= 5
    assert set(report["each_site"]) == {"north", "south", "east"}
    assert all(phase["round"] > 0 for phase in report["phases"].values())
    assert report["epsilon"] == pytest.approx(2.9, rel=0.01)
    assert report["each_site"]["north"]["memory"] > 100e6
    assert report["money"] > 0
    many = cloister("plan", RUN, "--seconds", "2", "--sites", "50", "--size", "200")
    assert "measured here" in many.stdout
    assert "46 more sites" in many.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds = 3", "the key `task` is missing"),
        ('task = "simulations.tasks.digits:Digits"', "--size 500"),
        ('task = "simulations.tasks.digits:Digits"\n[start]\nmodel = "' + 64 * "0" + '"', "remove [start]"),
        ('task = "simulations.tasks.digits:Digits"\n[statistics]', "unknown key"),
    ],
)
def test_what_cannot_be_planned_is_refused_at_once(text: str, message: str, tmp_path: Path, cloister: Run) -> None:
    run = tmp_path / "study.toml"
    run.write_text(text, encoding="utf-8")
    refused = cloister("plan", run)
    assert refused.returncode == 1
    assert message in refused.stderr, refused.stderr


def test_a_site_has_as_many_records_as_it_needs() -> None:
    pool = repeated(Pool((torch.arange(3.0), torch.arange(6).reshape(3, 2)), torch.arange(3)), 7)
    assert pool.targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [part[3:6].flatten().tolist() for part in tensors(pool.inputs)] == [[0, 1, 2], [0, 1, 2, 3, 4, 5]]
