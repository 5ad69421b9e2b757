"""Parameters that stay at a site come from its noisy steps, survive a restart, and are in nothing that leaves."""

import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors.numpy import load, load_file
from torch.nn.utils import parameters_to_vector

from client.dpsgd.training_steps import train
from client.flower import app as client_app
from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from client.state.local_parameters import LocalParameters
from client.task.guard import check_task
from client.task.probe import make_model
from client.task.task import Task
from cloister import load_model
from privacy.errors import KeyFileError, RefusedError, TaskError
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan
from privacy.run.settings import Encryption, Evaluation, Privacy, Training
from privacy.run.tables import Start
from simulations.engine.federation import Federation
from simulations.engine.inspection import find_secrets, site_secrets
from strategies.algorithm import LocalSolver
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    own_metrics,
    run_with,
    signed_run,
    task_name,
)
from tests.pictures import AllLocal, InTurn, LocalHead, LocalNorm, Misnamed, NoneInTurn
from tests.tables import table
from tests.trainings import signed, summed

HEADED = replace(SETTINGS, task=task_name(LocalHead), rounds=2)
MASKED = Encryption(update_bound=1.0, collusion_resistant=True)
SHAPES = (("head.weight", (1, 4)), ("head.bias", (1,)))
LAST = 5  # the head's values, which come last in the network


def own_of(federation: Federation, site: str) -> dict[str, np.ndarray[Any, Any]]:
    """What stays at a site after a run."""
    _, _, run = signed_run(federation)
    return LocalParameters(federation.paths[site] / "local").load(run, SHAPES) or {}


# --- In a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [LocalHead, LocalNorm])
def test_local_parameters_stay_at_their_site_and_the_shared_part_is_one_model(
    make_federation: FederationMaker, task: type[Task]
) -> None:
    federation = make_federation(replace(NOISY, task=task_name(task), rounds=2, encryption=MASKED))
    replies = list[bytes]()

    def heard(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        replies.append(repr(reply.content).encode())
        return reply

    assert all(event["released"] for event in run_with(federation, heard))
    (shared,) = set(models_of(federation).values())
    values, names = {}, set[str]()
    for site, path in federation.paths.items():
        (file,) = (path / "local").glob("*.safetensors")
        assert not list((path / "local").glob("*.pending"))
        own = load_file(file)
        names |= set(own)
        values[site] = np.concatenate([value.ravel() for value in own.values()])
    assert len({value.tobytes() for value in values.values()}) == len(SITES)
    secrets = site_secrets(federation)
    assert all(str(next((path / "local").glob("*.safetensors"))) in secrets for path in federation.paths.values())
    assert not find_secrets(federation.server, secrets)
    assert not any(name.encode() in data for data in (shared, *replies) for name in names)


def test_a_site_that_restarts_before_each_message_goes_on_with_what_it_kept(make_federation: FederationMaker) -> None:
    def restarted(message: Message, context: Context) -> Message:
        open_site.cache_clear()
        return client_app(message, context)

    runs = []
    for name, answer in (("whole", client_app), ("restarted", restarted)):
        federation = make_federation(replace(HEADED, rounds=3), name=name)
        run_with(federation, answer)
        (shared,) = set(models_of(federation).values())
        runs.append((load(shared), own_of(federation, "north")))
    (one, own), (other, again) = runs
    assert same(other, one)
    assert same(again, own)


def test_the_shared_and_the_personal_model_are_compared_at_the_site_alone(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    terms = {site: replace(TERMS, tasks=(HEADED.task,), disclose=("epsilon", "near")) for site in SITES}
    training = Training(steps_per_round=8, sample_rate=1.0, learning_rate=0.3)
    federation = make_federation(replace(HEADED, training=training), terms)
    with caplog.at_level(logging.INFO):
        _, last = run_with(federation)
    lines = own_metrics(federation, "north")
    assert all(line["personal"].keys() == line["metrics"].keys() == {"loss", "near"} for line in lines)
    assert "with this site's own parameters loss" in caplog.text
    assert last["metrics"]["near"] == pytest.approx(
        np.average([own_metrics(federation, site)[-1]["metrics"]["near"] for site in SITES]), abs=0.5
    )
    (path,) = (federation.paths["north"] / "models").glob("*.safetensors")
    study = open_site(federation.paths["north"]).study(HEADED.task)
    inputs, targets = table(study.held_out)
    for kind in ("metrics", "personal"):
        module = load_model(LocalHead(), path, personal=kind == "personal")
        with torch.no_grad():
            assert float(LocalHead().loss(module(inputs), targets)) == pytest.approx(lines[-1][kind]["loss"])


def test_a_later_run_and_an_evaluation_start_from_what_each_site_kept(make_federation: FederationMaker) -> None:
    federation = make_federation(HEADED)
    run_with(federation)
    own, start = own_of(federation, "north"), Start(sha256(next(iter(models_of(federation).values()))).hexdigest())
    federation.sign(replace(HEADED, name="second", start=start))
    _, manifest, run = signed_run(federation)
    model = open_site(federation.paths["north"]).checkpoint(manifest, run).model
    assert all(np.array_equal(model.local[name], own[name]) for name in own)
    settings = replace(
        HEADED, name="third", rounds=1, start=start, training=None, evaluation=Evaluation(("near",)),
        privacy=Privacy(noise_multiplier=0.0), encryption=Encryption(collusion_resistant=False),
    )  # fmt: skip
    study = open_site(federation.paths["north"]).study(HEADED.task)
    assert all(np.array_equal(study.start(settings).local[name], own[name]) for name in own)


def test_fedrep_trains_head_and_body_in_turn_in_a_whole_run(make_federation: FederationMaker) -> None:
    training = Training(steps_per_round=3, sample_rate=1.0, learning_rate=0.1)
    federation = make_federation(replace(NOISY, task=task_name(InTurn), training=training))
    assert all(event["released"] for event in run_with(federation))
    assert own_of(federation, "north")


# --- Refused before a charge ------------------------------------------------------------------------------------------


def get_ready_of(federation: Federation) -> None:
    """Let north get ready for the run; it has charged nothing afterwards."""
    site = open_site(federation.paths["north"])
    try:
        get_ready(admit(site, signed_run(federation)[0]), node_of(federation, "north"))
    finally:
        assert charges_of(federation, "north") == 0


def test_a_run_whose_noise_only_the_sum_carries_is_refused(make_federation: FederationMaker) -> None:
    privacy = Privacy(max_grad_norm=1.0, noise_multiplier=2.0, noise="shared")
    encryption = replace(MASKED, profile="precise", update_bound=0.5)
    federation = make_federation(
        replace(NOISY, task=HEADED.task, privacy=privacy, encryption=encryption),
        {site: replace(TERMS, tasks=(HEADED.task,), shared_noise=True) for site in SITES},
    )
    with pytest.raises(RefusedError, match=r'need noise of the site.s own in every step; set noise = "local" in'):
        get_ready_of(federation)


def test_fedrep_without_a_step_for_what_is_shared_is_refused(make_federation: FederationMaker) -> None:
    training = Training(steps_per_round=2, sample_rate=1.0, learning_rate=0.1)
    federation = make_federation(replace(NOISY, task=task_name(InTurn), training=training))
    with pytest.raises(RefusedError, match="takes 2 steps for what stays at the site, and a round has 2"):
        get_ready_of(federation)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Misnamed, r"`local` names 'heads\.\*', but no trained parameter"),
        (AllLocal, "leave something to share"),
        (NoneInTurn, "set both, or neither"),
    ],
)
def test_patterns_that_fit_nothing_or_everything_are_refused(task: type[Task], reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        check_task(task(), "tests.pictures:Task")


# --- The mechanism ----------------------------------------------------------------------------------------------------


def test_local_parameters_count_in_the_clipping_norm() -> None:
    inputs, targets = LocalHead().example()
    moved = summed(LocalHead(), (inputs[:1], 100 + targets[:1]), signed(norm=0.5))
    assert np.linalg.norm(moved) == pytest.approx(0.5, rel=1e-4)
    assert 0.1 < np.linalg.norm(moved[-LAST:]) < 0.5


def test_local_parameters_get_the_noise_of_every_step() -> None:
    inputs, targets = (part[:0] for part in LocalHead().example())
    total = [summed(LocalHead(), (inputs, targets), signed(noise=3.0), Randomness.seeded(n))[-LAST:] for n in range(60)]
    assert np.std(total) == pytest.approx(3.0, rel=0.2)


def test_fedrep_clips_and_moves_one_part_at_a_time() -> None:
    task, (inputs, targets) = InTurn(), InTurn().example()
    module, run = make_model(task, 0), signed(steps=3, norm=0.5)
    before = parameters_to_vector(module.parameters()).detach()
    wanted = make_model(task, 0)
    for step in range(3):
        own, body = list(wanted.head.parameters()), [*wanted.backbone.parameters(), *wanted.norm.parameters()]  # type: ignore[union-attr]
        active = own if step < 2 else body
        total = [torch.zeros_like(weight) for weight in active]
        for record in range(len(inputs)):
            part = slice(record, record + 1)
            gradients = torch.autograd.grad(task.loss(wanted(inputs[part]), targets[part]), active)
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            for place, gradient in enumerate(gradients):
                total[place] += gradient * min(1.0, 0.5 / (float(norm) + 1e-6))
        with torch.no_grad():
            for parameter, sum_ in zip(active, total, strict=True):
                parameter.sub_(sum_ / len(inputs))
    train(task, module, (inputs, targets), len(inputs), run, Randomness.fresh())
    after = parameters_to_vector(module.parameters()).detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, parameters_to_vector(wanted.parameters()).detach(), rtol=1e-4, atol=1e-5)
    assert all(tensor.requires_grad for tensor in module.parameters())


def test_an_algorithms_pull_is_on_what_is_shared() -> None:
    task, (inputs, targets) = LocalHead(), LocalHead().example()
    count = sum(parameter.numel() for parameter in make_model(task, 0).parameters())
    module = make_model(task, 0)
    before = parameters_to_vector(module.parameters()).detach()
    solver = LocalSolver(offset=np.ones(count - LAST))
    train(task, module, (inputs[:0], targets[:0]), 4, signed(), Randomness.fresh(), solver=solver)
    moved = before - parameters_to_vector(module.parameters()).detach()
    assert moved[:-LAST].numpy() == pytest.approx(1.0)
    assert not moved[-LAST:].any()


# --- Files ------------------------------------------------------------------------------------------------------------


def plan(run: str = "ab" * 32, number: int = 1) -> RoundPlan:
    return RoundPlan(
        run=run, round=number, attempt=1, cohort=SITES, roster_version=1, epoch=1, keys="0" * 64, minimum_cohort=3,
        deadline=1.0, base_model="0" * 64,
    )  # fmt: skip


def same(actual: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    return actual is not None and all(np.array_equal(actual[name], value) for name, value in wanted.items())


def test_new_values_count_once_the_sum_with_this_sites_update_is_open(tmp_path: Path) -> None:
    store, run = LocalParameters(tmp_path), plan().run
    first = {name: np.full(shape, 1.5, np.float32) for name, shape in SHAPES}
    second = {name: value + 1 for name, value in first.items()}
    store.keep(plan(), first)
    assert store.load(run, SHAPES) is None
    store.settle(plan(), contributed=True)
    assert same(store.load(run, SHAPES), first)
    store.keep(plan(number=2), second)
    store.settle(plan(number=2), contributed=False)
    assert same(store.load(run, SHAPES), first)
    assert store.load("", SHAPES) is None
    with pytest.raises(KeyFileError, match="does not have the parameters that this run's task keeps"):
        store.load(run, SHAPES[:1])
    store.current(run).write_bytes(b"\x00" * 9)
    with pytest.raises(KeyFileError, match="this file is damaged"):
        store.load(run, SHAPES)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = LocalParameters(tmp_path)
    store.keep(plan(), {name: np.full(shape, np.nan, np.float32) for name, shape in SHAPES})
    store.settle(plan(), contributed=True)
    with pytest.raises(KeyFileError, match="move it aside to start them again"):
        store.load(plan().run, SHAPES)
