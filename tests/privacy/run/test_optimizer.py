"""A run names its optimizer and its schedule of learning rates; neither changes what the run costs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from privacy.accounting.accounting import Mechanism
from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.optimizer import Adam, AdamW, Constant, Cosine, Linear, Schedule, Sgd, Step
from privacy.run.settings import Privacy, RunSettings, Training
from tests.privacy.consortium import make_manifest, relaxed, run_settings, signing_key
from tests.second import signed

if TYPE_CHECKING:
    from privacy.run.optimizer import Optimizer

FILE = """\
name = "study"
task = "a:B"
rounds = 3
[training]
sample_rate = 0.1
learning_rate = 0.1
{}
[privacy]
noise_multiplier = 1.0
max_grad_norm = 1.0
[encryption]
update_bound = 1.0
[cohort.sizes]
a = 10
b = 10
c = 10
"""
STEPS = "steps_per_round = 4\n"


def read(training: str) -> Training:
    """Read a run with these lines in its `[training]`."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "run.toml")
        path.write_text(FILE.format(training), encoding="utf-8")
        settings = read_toml(path, RunSettings).training
    assert settings is not None
    return settings


def complaint(training: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(training)
    return str(caught.value)


def training_with(optimizer: Optimizer | None = None, schedule: Schedule | None = None) -> Training:
    return Training(
        steps_per_round=5,
        sample_rate=0.1,
        learning_rate=0.1,
        optimizer=optimizer or Sgd(),
        schedule=schedule or Constant(),
    )


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "optimizer", "schedule"),
    [
        ("", Sgd(), Constant()),
        ('optimizer = "sgd"\nschedule = "constant"', Sgd(), Constant()),
        ('optimizer = "adam"\nschedule = "cosine"', Adam(), Cosine()),
        ('optimizer = "adamw"\nschedule = "linear"', AdamW(), Linear()),
        ('schedule = "step"', Sgd(), Step()),
        (
            '[training.optimizer]\nname = "sgd"\nmomentum = 0.9\nnesterov = true\nweight_decay = 0.001',
            Sgd(momentum=0.9, nesterov=True, weight_decay=0.001),
            Constant(),
        ),
        (
            '[training.optimizer]\nname = "adamw"\nbeta_1 = 0\nbeta_2 = 0.5\nepsilon = 1\nweight_decay = 0',
            AdamW(beta_1=0, beta_2=0.5, epsilon=1, weight_decay=0),
            Constant(),
        ),
        (
            'optimizer = "adamw"\n[training.schedule]\nname = "cosine"\nwarm_up = 0.1\nfinal = 0.5',
            AdamW(),
            Cosine(warm_up=0.1, final=0.5),
        ),
        ('[training.schedule]\nname = "step"\nevery = 2\nfactor = 0.1', Sgd(), Step(every=2, factor=0.1)),
    ],
)
def test_optimizers_and_schedules_are_set_by_name_or_table(
    lines: str, optimizer: Optimizer, schedule: Schedule
) -> None:
    training = read(STEPS + lines)
    assert (training.optimizer, training.schedule) == (optimizer, schedule)
    assert training.plain == ((optimizer, schedule) == (Sgd(), Constant()))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('optimizer = "adm"', "there is no optimizer 'adm'; did you mean `adam`?"),
        ('optimizer = "lion"', "there is no optimizer 'lion'; name one of sgd, adam, adamw"),
        ('schedule = "cosin"', "there is no schedule 'cosin'; did you mean `cosine`?"),
        ("optimizer = 3", "must be an object"),
        ("[training.optimizer]\nmomentum = 0.9", "its name is missing; name one of sgd, adam, adamw"),
        ('[training.optimizer]\nname = "adam"\nbeta1 = 0.9', "beta1 = 0.9\n^ unknown key; did you mean `beta_1`?"),
        (
            '[training.optimizer]\nname = "sgd"\nmomentun = 0.9',
            "momentun = 0.9\n^ unknown key; did you mean `momentum`?",
        ),
        ('[training.optimizer]\nname = "adam"\nmomentum = 0.9', "momentum = 0.9\n^ unknown key; remove it"),
        ('[training.schedule]\nname = "step"\nfinal = 0.1', "final = 0.1\n^ unknown key; remove it"),
        ('[training.schedule]\nname = "linear"\nwarmup = 0.1', "warmup = 0.1\n^ unknown key; did you mean `warm_up`?"),
        ("optimiser = 3", "optimiser = 3\n^ unknown key; did you mean `optimizer`?"),
        ('[training.optimizer]\nname = "sgd"\nmomentum = 1.0', "momentum = 1.0\n^ must be less than 1"),
        ('[training.optimizer]\nname = "sgd"\nmomentum = nan', "momentum = nan\n^ must be"),
        ('[training.schedule]\nname = "linear"\nwarm_up = nan', "warm_up = nan\n^ must be"),
        ('[training.optimizer]\nname = "adam"\nepsilon = 0', "epsilon = 0\n^ must be greater than 0"),
        ('[training.optimizer]\nname = "sgd"\nnesterov = true', "set momentum above 0, or remove nesterov"),
        ('[training.schedule]\nname = "step"\nevery = 0', "every = 0\n^ must be greater than or equal to 1"),
    ],
)
def test_unknown_optimizers_are_refused_with_their_line_and_the_nearest_name(lines: str, message: str) -> None:
    first, _, second = complaint(STEPS + lines).partition("\n")
    excerpt = f"{first.partition('  ')[2]}\n^ {second.lstrip(' ^')}"
    assert message in excerpt


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 10), (0.26, 3), (2, 20), (0.001, 1), (0.25, 2), (0.36, 4)])
def test_epochs_may_be_set_in_place_of_steps(epochs: float, steps: int) -> None:
    training = read(f"epochs_per_round = {epochs}")
    assert training.steps == steps
    assert training.sampling == (0.1, steps)
    settings = replace(run_settings(), training=training)
    manifest, _ = make_manifest(settings)
    assert settings.takes_steps
    assert manifest.round_cost == Mechanism(1.0, 0.1, steps)
    assert manifest.run_cost == Mechanism(1.0, 0.1, steps * settings.rounds)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "set either steps_per_round or epochs_per_round"),
        (STEPS + "epochs_per_round = 1.0", "set either steps_per_round or epochs_per_round"),
        ("epochs_per_round = 0", "must be greater than 0"),
        ("epochs_per_round = 1e9", "are more than 1,000,000,000 steps a round; set fewer epochs_per_round"),
        ("epochs_per_round = inf", "are more than 1,000,000,000 steps a round"),
        ("epochs_per_round = nan", "must be greater than 0"),
    ],
)
def test_contradictory_or_impossible_numbers_of_steps_are_refused(lines: str, message: str) -> None:
    assert message in complaint(lines)


@pytest.mark.parametrize("training", [training_with(Adam()), training_with(schedule=Linear(final=0.5))])
def test_shared_noise_needs_plain_steps(training: Training) -> None:
    shared = replace(
        run_settings(steps=1),
        encryption=replace(run_settings().encryption, collusion_resistant=True),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0, noise="shared"),
    )
    with pytest.raises(ValidationError, match="needs plain steps of one learning rate; remove optimizer and schedule"):
        replace(shared, training=replace(training, steps_per_round=1))


# --- Manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "training",
    [
        training_with(Sgd(momentum=0.5, nesterov=True), Cosine(warm_up=0.25)),
        training_with(Adam(weight_decay=0.1), Step(every=3)),
        replace(training_with(AdamW(), Linear(final=1.0)), steps_per_round=None, epochs_per_round=0.5),
    ],
)
def test_optimizers_are_signed_and_read_by_both_readers(training: Training) -> None:
    key = signing_key("coordinator")
    document = sign_manifest(replace(run_settings(), training=training), key, roster_version=3).to_bytes()
    manifest, _ = open_manifest(document, key.public_key())
    assert manifest.settings.training == training
    read_twice = signed.open_manifest(document, key.public_key().public_bytes_raw())["settings"]["training"]
    assert read_twice == json.loads(json.dumps(asdict(training)))


def test_settings_without_optimizers_use_plain_steps() -> None:
    data = json.loads(json.dumps(asdict(run_settings())))
    for key in ("optimizer", "schedule", "epochs_per_round"):
        del data["training"][key]
    assert TypeAdapter(RunSettings).validate_json(json.dumps(data)) == run_settings()


@pytest.mark.parametrize("optimizer", [Sgd(momentum=0.9), Adam(), AdamW()])
def test_optimizers_change_neither_noise_nor_cost(optimizer: Optimizer) -> None:
    private = replace(run_settings(), privacy=Privacy(max_grad_norm=1.0, epsilon=2.0))
    plain, _ = make_manifest(private)
    other, _ = make_manifest(replace(private, training=training_with(optimizer, Cosine(warm_up=0.1))))
    assert other.noise_multiplier == plain.noise_multiplier
    assert (other.round_cost, other.run_cost) == (plain.round_cost, plain.run_cost)


# --- Schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "first", "middle", "last"),
    [  # of 10 rounds of 4 steps
        (Constant(), 1.0, 1.0, 1.0),
        (Constant(warm_up=0.1), 0.2, 1.0, 1.0),
        (Linear(), 1.0, 0.5, 1 / 40),
        (Linear(final=0.2), 1.0, 0.6, 0.2 + 0.8 / 40),
        (Linear(warm_up=0.5), 1 / 21, 1.0, 1 / 20),
        (Cosine(), 1.0, 0.5, 0.0015413),
        (Cosine(final=0.5), 1.0, 0.75, 0.5007707),
        (Cosine(warm_up=0.5), 1 / 21, 1.0, 0.0061558),
        (Step(every=5, factor=0.5), 1.0, 0.5, 0.5),
        (Step(every=3, factor=0.1), 1.0, 0.1, 0.001),
        (Step(every=3, factor=0.1, warm_up=0.1), 0.2, 0.1, 0.001),
    ],
)
def test_a_schedule_has_known_values(schedule: Schedule, first: float, middle: float, last: float) -> None:
    fractions = [schedule.fraction(step, 4, 10) for step in (1, 21, 40)]
    assert fractions == pytest.approx([first, middle, last], abs=1e-6)


def test_a_warm_up_rises_by_equal_amounts() -> None:
    fractions = [Constant(warm_up=0.4).fraction(step, 1, 10) for step in range(1, 8)]
    assert fractions == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


PARTS = st.floats(0, 1)
SCHEDULES: st.SearchStrategy[Schedule] = st.one_of(
    st.builds(Constant, warm_up=PARTS),
    st.builds(Cosine, warm_up=PARTS, final=PARTS),
    st.builds(Linear, warm_up=PARTS, final=PARTS),
    st.builds(Step, warm_up=PARTS, every=st.integers(1, 1000), factor=st.floats(0, 1, exclude_min=True)),
)


@relaxed
@given(schedule=SCHEDULES, steps=st.integers(1, 1000), rounds=st.integers(1, 100_000), data=st.data())
def test_a_fraction_is_a_number_from_0_to_1_and_does_not_rise_after_the_warm_up(
    schedule: Schedule, steps: int, rounds: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, steps * rounds))
    fraction = schedule.fraction(step, steps, rounds)
    assert 0 <= fraction <= 1
    if schedule.warm_up * steps * rounds + 1 < step < steps * rounds:
        assert schedule.fraction(step + 1, steps, rounds) <= fraction
