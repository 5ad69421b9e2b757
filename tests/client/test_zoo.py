"""Ordinary architectures pass the guard, get the mode that is fastest for them, and learn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from client import guard
from client.dpsgd import train, way_to_train
from client.settings import Computing
from client.trial import make_model
from privacy.randomness import Randomness
from tests.client.specimens import manifest
from tests.client.zoo.images import IMAGES
from tests.client.zoo.parts import RECORDS, Architecture, Ordinary
from tests.client.zoo.sequences import SEQUENCES
from tests.client.zoo.tabular import TABULAR

if TYPE_CHECKING:
    from privacy.manifest import Manifest

ZOO = TABULAR | IMAGES | SEQUENCES
ROUNDS, STEPS = 3, 4


def run_of(architecture: Architecture) -> Manifest:
    """Three rounds of a few steps, on about half of the records, without noise."""
    run = manifest(STEPS, 0.5, 0.0, 1.0)
    assert run.settings.training
    training = replace(run.settings.training, learning_rate=architecture.learning_rate)
    return replace(run, settings=replace(run.settings, training=training, rounds=ROUNDS))


@pytest.mark.parametrize("name", ZOO)
def test_an_ordinary_architecture_is_taken_and_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_SECONDS", 0.02)  # beyond what it tries of gradients in any case
    architecture = ZOO[name]
    task = Ordinary(architecture)
    guard.check_task(task, "zoo:Ordinary")
    inputs, targets = records = architecture.records(RECORDS)
    module, run = make_model(task, 0), run_of(architecture)
    assert way_to_train(task, module, Computing()).gradients == architecture.mode
    losses = []
    for number in range(ROUNDS + 1):
        with torch.no_grad():
            losses.append(float(task.loss(module.eval()(inputs), targets)))
        train(task, module.train(), records, RECORDS, run, Randomness.seeded(number))
    assert losses[-1] < 0.9 * losses[0], losses
