"""A site's personal model is trained for it alone: the shared run is the same, bit for bit, with and without it."""

import json
import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from threading import Event
from traceback import walk_stack
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors import safe_open
from torch import nn
from typing_extensions import override

from client.app import undo_round
from client.data.site_records import InMemory
from client.flower import app as client_app
from client.flower import open_site
from client.settings import Personal
from client.state.personal_models import NOT_PRIVATE, After, PersonalModels
from client.task.probe import make_model
from client.work.personal_training import descend, go_on
from cloister import load_model, load_personal
from privacy.errors import ConfigError, KeyFileError, RefusedError
from privacy.noise.randomness import Randomness
from privacy.run.settings import Encryption, Training
from privacy.run.tables import Start
from server.hub.mailboxes import Mailboxes
from simulations.engine.federation import Federation
from simulations.engine.inspection import find_secrets, site_secrets
from tests import studies
from tests.client.round.test_voting import CONSENT, VOTED, cast_by, keeping, opened, question_of
from tests.client.test_agent import Server, agent_of, query
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    await_condition,
    models_of,
    restart,
    roster_of,
    run_with,
    signed_run,
    task_name,
)
from tests.pictures import LocalHead
from tests.ports import unused_port
from tests.studies import Tiny
from transport.messages import Undo
from transport.run_messages import read_readiness

DITTO = 'method = "ditto"\nlearning_rate = 0.05\nbatch_size = 8\n'
TUNED = 'method = "fine-tuning"\nlearning_rate = 0.05\nepochs = 2.0\n'
STEPS = Training(steps_per_round=3, sample_rate=1.0, learning_rate=0.1)
RUN = replace(SETTINGS, rounds=2, training=STEPS)
SHAPES = (("weight", (1, 2)), ("bias", (1,)))


def personally(federation: Federation, text: str, sites: tuple[str, ...] = SITES) -> Federation:
    """Give some sites a table `[personal]`."""
    for site in sites:
        with (federation.paths[site] / "site.toml").open("a", encoding="utf-8") as file:
            file.write(f"\n[personal]\n{text}")
    open_site.cache_clear()
    return federation


def compared(federation: Federation, site: str) -> list[dict[str, Any]]:
    """What a site wrote into its own folder about its personal model."""
    (file,) = (federation.paths[site] / "metrics").glob("*.personal.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def file_of(federation: Federation, site: str) -> Path:
    """The file of a site's personal model."""
    (file,) = (federation.paths[site] / "personal").glob("*.safetensors")
    return file


def personal_of(federation: Federation, site: str) -> tuple[dict[str, bytes], str]:
    """A site's personal model, and what its file says about it."""
    with safe_open(file_of(federation, site), "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()["cloister"]  # noqa: SIM118


def the_same_run(federation: Federation, other: Federation) -> Federation:
    """Let a federation with the same keys carry out another's signed run, whose digest is in every file."""
    federation.manifest.write_bytes(other.manifest.read_bytes())
    return federation


# --- What leaves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Tiny, LocalHead], ids=["shared", "local"])
def test_the_shared_run_is_the_same_bit_for_bit_with_and_without_it(
    make_federation: FederationMaker, task: type[Tiny]
) -> None:
    settings = replace(RUN, task=task_name(task))
    terms = {site: replace(TERMS, tasks=(settings.task,), disclose=("epsilon", "loss", "near")) for site in SITES}
    seen, first = [], None
    for name, text in (("without", ""), ("ditto", DITTO), ("tuned", TUNED)):
        federation = make_federation(settings, terms, name=name)
        first = first or federation
        the_same_run(federation, first)
        if text:
            personally(federation, text)
        events = run_with(federation)
        own = {site: [file.read_bytes() for file in path.glob("local/*")] for site, path in federation.paths.items()}
        told = [(event["metrics"], event["sharing"], event["epsilon"], event["problems"]) for event in events]
        seen.append((models_of(federation), own, told))
        assert bool(list(federation.paths["north"].glob("personal/*.safetensors"))) == bool(text)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][2][0][0]  # metrics were shared


def test_nothing_of_it_is_at_the_server_and_no_run_starts_from_it(make_federation: FederationMaker) -> None:
    masked = Encryption(update_bound=1.0, collusion_resistant=True)
    federation = personally(make_federation(replace(NOISY, training=STEPS, encryption=masked)), DITTO)
    replies = list[bytes]()

    def heard(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        replies.append(repr(reply.content).encode())
        return reply

    assert all(event["released"] for event in run_with(federation, heard))
    secrets = site_secrets(federation)
    assert {name for name in secrets if "/personal/" in name}
    assert not find_secrets(federation.server, secrets)
    assert not any(b"personal" in reply or b"ditto" in reply for reply in replies)
    data = file_of(federation, "north").read_bytes()
    for path in federation.paths.values():
        (path / "models" / "copied.safetensors").write_bytes(data)
    federation.sign(replace(NOISY, name="second", start=Start(sha256(data).hexdigest())))
    _, manifest, run = signed_run(federation)
    with pytest.raises(RefusedError, match="a site's personal model, trained without privacy"):
        restart(federation, "north").checkpoint(manifest, run)


# --- What it is worth to the site -------------------------------------------------------------------------------------


def test_where_sites_disagree_each_personal_model_fits_its_own_site_better(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation = personally(make_federation(replace(RUN, rounds=3)), DITTO.replace("0.05", "0.1") + "epochs = 4.0\n")
    for number, path in enumerate(federation.paths.values()):
        rows = [f"{i % 5 / 5},{i % 7 / 7},{(-1) ** number * (i % 5) / 5}" for i in range(25)]
        (path / TERMS.file).write_text("\n".join(["a,b,y", *rows, ""]))
    open_site.cache_clear()
    with caplog.at_level(logging.INFO, "cloister.agent"):
        run_with(federation)
    for site in SITES:
        lines = compared(federation, site)
        assert [line["round"] for line in lines] == [1, 2, 3]
        assert lines[-1]["personal"]["loss"] < 0.7 * lines[-1]["shared"]["loss"]
    assert "round 3 of 3: personal model (ditto) loss 0." in caplog.text
    assert "held-out records; shared model loss 0." in caplog.text
    (path,) = (federation.paths["north"] / "models").glob("*.safetensors")
    study, line = open_site(federation.paths["north"]).study(RUN.task), compared(federation, "north")[-1]
    inputs, targets = study.held_out.whole()
    for module, kind in ((load_model(Tiny(), path), "shared"), (load_personal(Tiny(), path), "personal")):
        with torch.no_grad():
            assert float(Tiny().loss(module(inputs), targets)) == pytest.approx(line[kind]["loss"], rel=1e-5)


def test_fine_tuning_trains_the_named_layers_once_after_the_last_round(make_federation: FederationMaker) -> None:
    settings = replace(RUN, task=task_name(LocalHead))
    federation = personally(make_federation(settings), TUNED + 'layers = ["head.*", "norm.bias"]\n', ("north",))
    run_with(federation)
    assert [line["round"] for line in compared(federation, "north")] == [2]
    (path,) = (federation.paths["north"] / "models").glob("*.safetensors")
    shared, personal = (load(LocalHead(), path) for load in (_with_local, load_personal))
    changed = {
        name for name, tensor in personal.state_dict().items() if not torch.equal(tensor, shared.state_dict()[name])
    }
    assert changed == {"head.weight", "head.bias", "norm.bias"}
    (file,) = (federation.paths["north"] / "personal").iterdir()
    with safe_open(file, "np") as opened:
        assert opened.metadata()["privacy"] == NOT_PRIVATE
    assert file.stat().st_mode & 0o777 == 0o600
    (other,) = (federation.paths["south"] / "models").glob("*.safetensors")
    with pytest.raises(RefusedError, match="has trained no personal model in that run"):
        load_personal(LocalHead(), other)


def _with_local(task: LocalHead, path: Path) -> nn.Module:
    return load_model(task, path, personal=True)


def test_a_step_of_ditto_follows_the_loss_and_the_pull_to_the_shared_model() -> None:
    task, (inputs, targets) = Tiny(), Tiny().example()
    module = make_model(task, 0)
    start = {"weight": np.array([[1.0, -1.0]], np.float32), "bias": np.array([0.5], np.float32)}
    shared = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    asked = Personal("ditto", learning_rate=0.01, proximal=3.0, batch_size=4)
    wanted = {name: torch.from_numpy(tensor.copy()).requires_grad_() for name, tensor in start.items()}
    loss = task.loss(nn.functional.linear(inputs, wanted["weight"], wanted["bias"]), targets)
    loss.backward()
    descend(task, module, InMemory(inputs, targets), asked, 1, Randomness.fresh(), start=start)
    for name, parameter in module.named_parameters():
        gradient = wanted[name].grad
        assert gradient is not None
        by_hand = wanted[name].detach() - 0.01 * (gradient + 3.0 * (wanted[name].detach() - shared[name]))
        torch.testing.assert_close(parameter.detach(), by_hand)
        assert parameter.requires_grad


def test_the_number_of_steps_and_the_size_of_batches_tell_nothing_of_the_number_of_records() -> None:
    class Counting(Tiny):
        def __init__(self) -> None:
            self.rows = list[int]()

        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            self.rows.append(len(targets))
            return super().loss(outputs, targets)

    asked = Personal("ditto", learning_rate=0.001, batch_size=8)
    for count in (1, 3, 4):
        task, (inputs, targets) = Counting(), Tiny().example()
        records = InMemory(inputs[:count], targets[:count])
        descend(task, make_model(task, 0), records, asked, 5, Randomness.fresh(), start={})
        assert task.rows == [8] * 5


# --- Restarts and failures --------------------------------------------------------------------------------------------


def test_a_site_that_restarts_before_each_message_goes_on_with_its_personal_model(
    make_federation: FederationMaker,
) -> None:
    def restarted(message: Message, context: Context) -> Message:
        open_site.cache_clear()
        return client_app(message, context)

    whole = personally(make_federation(RUN, name="whole"), DITTO)
    again = the_same_run(personally(make_federation(RUN, name="again"), DITTO), whole)
    run_with(whole)
    run_with(again, restarted)
    assert all(personal_of(again, site) == personal_of(whole, site) for site in SITES)


@pytest.mark.parametrize("text", [DITTO, TUNED], ids=["ditto", "fine-tuning"])
def test_an_agent_that_was_stopped_before_training_it_does_so_when_it_starts(
    make_federation: FederationMaker, text: str
) -> None:
    whole = personally(make_federation(RUN, name="whole"), text)
    run_with(whole)
    stopped = the_same_run(personally(make_federation(RUN, name="stopped"), text), whole)

    def stopping(message: Message, context: Context) -> Message:
        # Every site but north is stopped when it has answered the last round.
        site, (_, manifest, run) = open_site(Path(str(context.node_config["site"]))), signed_run(stopped)
        last = site.name != "north" and site.checkpoint(manifest, run).round == 1
        site.later = (lambda _: None) if last else (lambda work: work())
        return client_app(message, context)

    run_with(stopped, stopping)
    for site in SITES:
        opened = restart(stopped, site)
        assert bool(list(opened.personal_models.due())) == (site != "north")
        go_on(opened)
        assert not list(opened.personal_models.due())
        assert personal_of(stopped, site) == personal_of(whole, site)
        before = compared(stopped, site)
        go_on(opened)
        assert compared(stopped, site) == before


def test_if_the_last_round_is_undone_the_model_before_it_is_fine_tuned(make_federation: FederationMaker) -> None:
    settings = replace(VOTED, rounds=1, training=STEPS)
    federation = personally(make_federation(settings, dict.fromkeys(SITES, CONSENT)), TUNED)
    run_with(federation, keeping)
    site, admitted, now = opened(federation)
    stored = site.personal_models.load(admitted.run, SHAPES)
    assert stored is not None
    assert stored[1] == After("fine-tuning", 1, now.digest)
    question = question_of(site, admitted, now)
    votes = cast_by(federation, question, dict.fromkeys(SITES, True))
    undone = undo_round(admitted, Undo(b"", question.round, question.before, question.after, votes))
    again = site.personal_models.load(admitted.run, SHAPES)
    assert again is not None
    assert again[1] == After("fine-tuning", 1, undone)
    assert [line["model"] for line in compared(federation, "north")] == [now.digest, undone]


def test_a_failure_is_logged_and_the_run_goes_on(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation = personally(make_federation(RUN), DITTO.replace("0.05", "1e30") + "proximal = 0.0\n", ("north",))
    (federation.paths["south"] / "personal").write_text("a file where a folder should be")
    personally(federation, TUNED, ("south",))
    events = run_with(federation)
    assert [(event["released"], event["problems"]) for event in events] == [(True, {})] * 2
    assert "the personal model was not trained; the run does not depend on it: its values are no longer" in caplog.text
    assert "Traceback" not in caplog.text
    assert not list((federation.paths["north"] / "personal").glob("*.safetensors"))
    assert studies.QUOTE not in caplog.text


def test_a_damaged_file_or_another_tasks_is_named(tmp_path: Path) -> None:
    store, run, shapes = PersonalModels(tmp_path), "ab" * 32, (("weight", (1, 2)),)
    assert store.load(run, shapes) is None
    after = After("ditto", 3, "cd" * 32)
    path = store.save(run, {"weight": np.ones((1, 2), np.float32)}, after)
    stored = store.load(run, shapes)
    assert stored is not None
    assert stored[1] == after
    with pytest.raises(KeyFileError, match="does not have the parameters of the run's task"):
        store.load(run, (("weight", (2, 2)),))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KeyFileError, match="this file is damaged"):
        store.load(run, shapes)


# --- Settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TUNED + "proximal = 0.1\n", 'proximal is for method = "ditto"'),
        (DITTO + "proximal = 20.0\n", "proximal times learning_rate is 1; it must be below 1"),
        (DITTO.replace("ditto", "dito"), "must be 'ditto' or 'fine-tuning'"),
        (DITTO + "lambda = 1.0\n", "unknown key"),
    ],
)
def test_settings_that_cannot_be_are_refused(make_federation: FederationMaker, text: str, said: str) -> None:
    federation = personally(make_federation(), text, ("north",))
    with pytest.raises(ConfigError, match=said):
        open_site(federation.paths["north"])


def test_layers_that_the_task_lacks_are_named_when_the_agent_starts(make_federation: FederationMaker) -> None:
    federation = personally(make_federation(), DITTO + 'layers = ["heads.*"]\n', ("north",))
    with pytest.raises(ConfigError, match=r"has 'heads\.\*', which no trained parameter of .* they are weight, bias"):
        open_site(federation.paths["north"]).check_records()


# --- With an agent ----------------------------------------------------------------------------------------------------


class Waiting(Tiny):
    """Its personal model waits to be trained until a test says so."""

    let_go: ClassVar[Event] = Event()

    @override
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if any(frame.f_code is descend.__code__ for frame, _ in walk_stack(None)):
            assert Waiting.let_go.wait(60)
        return super().loss(outputs, targets)


def test_an_agent_answers_first_and_then_trains_what_was_left(make_federation: FederationMaker) -> None:
    port = unused_port()
    settings = replace(RUN, task=task_name(Waiting))
    federation = personally(make_federation(settings, server=f"localhost:{port}"), DITTO, ("north",))

    def stopped(message: Message, context: Context) -> Message:
        open_site(Path(str(context.node_config["site"]))).later = lambda _: None
        return client_app(message, context)

    run_with(federation, stopped)
    nodes = {member.node_id for member in roster_of(federation).members}
    server, folder = Server(federation, Mailboxes(nodes), port), federation.paths["north"] / "personal"
    asked = query(federation)
    server.open()
    server.send(asked)
    with agent_of(federation, server) as agent:
        assert read_readiness(server.receive(asked).content).site == "north"
        assert not list(folder.glob("*.safetensors"))
        Waiting.let_go.set()
        await_condition(lambda: not list(folder.glob("*.manifest")))
        assert file_of(federation, "north").exists()
    assert agent.errors == []
