"""A simulation ends where no site will ever take part, and at once where it is told to."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from privacy.errors import RunError
from privacy.run.settings import RunSettings
from simulations.engine.federation import SiteTerms
from simulations.engine.ray_cluster import Cluster
from simulations.study.checkpoints import Checkpoint
from simulations.study.protocol import WholeProtocol
from simulations.study.runner import prepare
from tests.federations import await_condition
from tests.simulations.study.test_on_flower import Pickled
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

ROOT = Path(__file__).parents[3]
SLOW = """
import time

import torch
from torch import nn

from cloister import Task


class Slow(Task):
    def model(self):
        return nn.Linear(4, 1)

    def example(self):
        return torch.randn(6, 4), torch.tensor([[0.0], [1.0]] * 3)

    def load(self, path):
        return torch.randn(600, 4), torch.ones(600, 1)

    def loss(self, outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs, targets)
"""
RUN = """
name = "slow"
task = "a_slow_task:Slow"
rounds = 3

[training]
sample_rate = 0.5
steps_per_round = 10000
learning_rate = 0.1
"""


class Strict(WholeProtocol):
    """Sites that take part in larger cohorts only."""

    @override
    def _terms(self, settings: RunSettings) -> SiteTerms:
        return replace(super()._terms(settings), minimum_cohort=9)


class StrictOnFlower(Pickled):
    """The same, opened from their folders."""

    @override
    def _terms(self, settings: RunSettings) -> SiteTerms:
        return replace(super()._terms(settings), minimum_cohort=9)


@pytest.mark.parametrize(
    "engine", [Strict("inline"), Strict("processes"), StrictOnFlower(Cluster())], ids=["inline", "processes", "flower"]
)
def test_a_run_that_all_sites_refuse_ends_with_a_reason(engine: WholeProtocol, tmp_path: Path) -> None:
    study = prepare(Sign, (INPUTS, TARGETS), PLAIN, sites=3, engine="inline", folder=tmp_path / "federation")
    began = time.monotonic()
    with pytest.raises(RunError, match=r"^3 of 3 sites do not take part: .*minimum"):
        list(engine.play(study.simulation, Checkpoint(0, [])))
    assert time.monotonic() - began < study.simulation.settings.cohort.round_deadline_seconds / 60


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_a_signal_ends_a_simulation_whose_sites_train(engine: str, number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "a_slow_task.py").write_text(SLOW)
    (tmp_path / "slow.toml").write_text(RUN)
    (tmp_path / "records").touch()
    command = [sys.executable, "-m", "cloister", "simulate", "slow.toml", "--records", "records", "--sites", "2"]
    with subprocess.Popen(
        [*command, "--engine", engine, "--folder", "sites"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        await_condition(lambda: any((tmp_path / "sites").glob("site-1/ledger/*")), 60.0)
        workers = _children(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("stopped\n")
    assert not re.search("terminate called|Traceback", said)
    await_condition(lambda: not any(map(_is_alive, workers)), 10.0)


def _children(pid: int) -> list[int]:
    return [int(name) for name in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]


def _is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    return False
