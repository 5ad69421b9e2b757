"""Runs with optimizers, schedules and epochs, and the learning rates that follow, for the golden files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.optimizer import Adam, AdamW, Constant, Cosine, Linear, Sgd, Step
from privacy.run.settings import Training
from tests.privacy.consortium import run_settings, signing_key

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest

_ROUNDS = 4
_TRAININGS = [
    Training(sample_rate=0.1, learning_rate=0.1, steps_per_round=3, schedule=Constant(warm_up=0.5)),
    Training(
        sample_rate=0.5,
        learning_rate=1.6,
        epochs_per_round=1.25,
        optimizer=Adam(),
        schedule=Linear(final=0.1),
        ema_decay=0.9,
        augmentation_multiplicity=8,
    ),
    Training(
        sample_rate=0.4,
        learning_rate=0.02,
        epochs_per_round=1.0,
        optimizer=AdamW(beta_1=0.5),
        schedule=Cosine(warm_up=0.3, final=0.2),
    ),
    Training(
        sample_rate=0.3,
        learning_rate=0.7,
        epochs_per_round=0.01,
        optimizer=Sgd(momentum=0.9, nesterov=True),
        schedule=Step(every=2, factor=0.3),
    ),
]


def trainings() -> dict[str, list[dict[str, object]]]:
    """Return signed runs, each with its steps per round and the learning rate of every step."""
    key, rows = signing_key("coordinator"), list[dict[str, object]]()
    for training in _TRAININGS:
        settings = replace(run_settings(), rounds=_ROUNDS, training=training)
        document = sign_manifest(settings, key, roster_version=3).to_bytes()
        manifest, _ = open_manifest(document, key.public_key())
        steps, rates = steps_and_rates(manifest)
        rows.append({"manifest": document.decode(), "steps": steps, "rates": rates})
    return {"runs": rows}


def steps_and_rates(manifest: Manifest) -> tuple[int, list[float]]:
    """Return a run's steps per round, and the learning rate of every step of the run."""
    training, rounds = manifest.settings.training, manifest.settings.rounds
    assert training is not None
    steps, rate = training.steps, training.learning_rate
    fractions = (training.schedule.fraction(step, steps, rounds) for step in range(1, steps * rounds + 1))
    return steps, [rate * fraction for fraction in fractions]
