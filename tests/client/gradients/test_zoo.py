"""Ordinary architectures pass the guard, get the mode that is fastest for them, and learn."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from client.dpsgd.training_steps import train, way_to_train
from client.settings import Computing
from client.task import guard
from client.task.probe import make_model
from privacy.errors import TaskError
from privacy.noise.randomness import Randomness
from tests.client.specimens import manifest
from tests.client.zoo.converted import CONVERTED
from tests.client.zoo.images import IMAGES
from tests.client.zoo.parts import RECORDS, Architecture, Ordinary
from tests.client.zoo.refused import REFUSED
from tests.client.zoo.sequences import SEQUENCES
from tests.client.zoo.tabular import TABULAR

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest

ZOO = TABULAR | IMAGES | SEQUENCES
STEPS = 10


def run_of(architecture: Architecture, steps: int = STEPS) -> Manifest:
    """A round of a few steps, on about half of the records, without noise."""
    run = manifest(steps, 0.5, 0.0, 1.0)
    assert run.settings.training
    training = replace(run.settings.training, learning_rate=architecture.learning_rate)
    return replace(run, settings=replace(run.settings, training=training))


@pytest.mark.parametrize("name", ZOO)
def test_an_ordinary_architecture_is_taken_and_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_SECONDS", 0.02)  # all of them for as long as it takes: below
    architecture = ZOO[name]
    task = Ordinary(architecture)
    guard.check_task(task, "zoo:Ordinary")
    inputs, targets = records = task.load(Path())
    module, run = make_model(task, 0), run_of(architecture)
    assert way_to_train(task, module, Computing()).gradients == architecture.mode

    def loss() -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for models that draw at random: the same, every time
            return float(task.loss(module.eval()(inputs), targets))

    before = loss()
    train(task, module.train(), records, RECORDS, run, Randomness.seeded(0))
    assert loss() < 0.9 * before


@pytest.mark.soak
@pytest.mark.parametrize("name", ZOO)
def test_the_guard_takes_an_ordinary_architecture_however_long_it_looks(name: str) -> None:
    guard.check_task(Ordinary(ZOO[name]), "zoo:Ordinary")


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_architectures_are_refused_with_the_remedy(name: str) -> None:
    task, message = REFUSED[name]

    def begin() -> None:
        guard.check_task(task, "zoo:Refused")
        way_to_train(task, make_model(task, 0), Computing())

    with pytest.raises(TaskError, match=re.escape(message)):
        begin()


@pytest.mark.parametrize("name", [name for name in SEQUENCES if re.search("LSTM|GRU|RNN", name)])
def test_recurrent_layers_run_in_sixteen_bits(name: str) -> None:
    task, computing = Ordinary(SEQUENCES[name]), Computing(precision="bfloat16")
    module, records = make_model(task, 0), task.load(Path())
    ways = {SEQUENCES[name].mode, "autograd"}  # the latter where the processor has no 16-bit arithmetic
    assert way_to_train(task, module, computing).gradients in ways
    before = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
    train(task, module, records, RECORDS, run_of(SEQUENCES[name], 2), Randomness.seeded(0), computing=computing)
    moved = torch.nn.utils.parameters_to_vector(module.parameters()).detach() - before
    assert 0 < moved.norm() < torch.inf


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_architectures_are_refused_before_and_accepted_after_conversion(name: str) -> None:
    conversion = CONVERTED[name]
    with pytest.raises(TaskError):
        guard.check_task(conversion.before, "zoo:Before")
    task = conversion.after
    guard.check_task(task, "zoo:After")
    assert way_to_train(task, make_model(task, 0), Computing()).gradients == conversion.mode


def test_the_page_of_models_is_correct() -> None:
    page = Path("docs/models.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^## (Taken|Taken by conversion|Refused)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    )
    accepted, converted, refused = (_rows(sections[name]) for name in ("Taken", "Taken by conversion", "Refused"))
    assert accepted == [[name, f"`{architecture.mode}`"] for name, architecture in ZOO.items()]
    assert converted == [[name, specimen.words, f"`{specimen.mode}`"] for name, specimen in CONVERTED.items()]
    assert [name for name, _, _ in refused] == list(REFUSED)
    assert all(why and instead for _, why, instead in refused)


def _rows(part: str) -> list[list[str]]:
    """Return the cells of a table's rows, without its head."""
    return [row.strip("| ").split(" | ") for row in part.splitlines() if row.startswith("| ")][1:]
