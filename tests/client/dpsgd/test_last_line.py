"""What no example leads to is found in training, before anything leaves, and stays refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from traceback import walk_stack
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.site_records import InMemory
from client.dpsgd.additivity import check_mode
from client.dpsgd.training_steps import train, way_to_train
from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from client.settings import Computing, Gradients, Precision
from client.state.refusals import FILE, Refusals
from client.task.guard import check_records, check_task
from client.task.interactions import InteractionError
from client.task.probe import Example
from client.task.proving import prove
from client.task.task import import_task
from privacy.errors import RunError, TaskError
from privacy.run.settings import Privacy
from tests.client.task.test_guard_gradients import (
    ToTheLongest,
    backwards,
    head_of,
    in_eight_bits,
    normalised,
    saved_in_eight_bits,
)
from tests.federations import NOISY, charges_of, node_of, restart, run_with, signed_run, task_name
from tests.probes import CLASSES, WIDTH, Through, Toy, head, vectors
from tests.studies import Tiny
from tests.trainings import signed, summed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.federations import FederationMaker

STEPS = 40  # in rounds of so many, a whole part of the batch is looked at


def loud() -> tuple[Tensor, Tensor]:
    """Sixty records, one of them unlike any that a task makes up."""
    inputs, targets = torch.randn(60, WIDTH), torch.arange(60) % CLASSES
    inputs[17, 2] = 12345.0
    return inputs, targets


def if_loud(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Change a batch only where the record above is in it; no made-up record is so loud."""
    return lambda inputs: change(inputs) if bool(((inputs > 12000) & (inputs < 13000)).any()) else inputs


def after_a_layer(change: Callable[[Tensor], Tensor]) -> Toy:
    class Noticing(nn.Module):
        """Changes what comes after its first layer if its inputs are loud."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)

        @override
        def forward(self, inputs: Tensor) -> Tensor:
            seen = bool(((inputs > 12000) & (inputs < 13000)).any())
            hidden = self.first(inputs.clamp(-9, 9))
            outputs: Tensor = self.last((change(hidden) if seen else hidden).tanh())
            return outputs

    return Toy(Noticing)


def again_and_again(work: Callable[[], object]) -> str:
    """Train until an interaction of records is found; return the message. The checked records are drawn at random."""
    for _ in range(16):
        try:
            work()
        except InteractionError as error:
            return str(error)
    return ""


RARE: dict[str, Toy] = {
    "less the mean": Toy(lambda: Through(if_loud(lambda x: x - x.mean(0)), head())),
    "half as loud": Toy(lambda: Through(if_loud(lambda x: x / 2), head())),
    "normalised on the way back": after_a_layer(backwards(normalised)),
    "in 8 bits on the way back": after_a_layer(backwards(in_eight_bits)),
    "less the mean, beside dropout": Toy(
        lambda: nn.Sequential(Through(if_loud(lambda x: x - x.mean(0)), nn.Dropout(0.2)), head())
    ),
}


@pytest.mark.parametrize("task", RARE.values(), ids=RARE.keys())
def test_interactions_of_records_that_no_example_triggers_are_found_in_training(task: Toy) -> None:
    torch.manual_seed(2)
    check_task(task, "package:Class")
    manifest = signed(steps=STEPS, norm=0.5)
    message = again_and_again(lambda: summed(task, loud(), manifest))
    assert "depends on the other records of its batch; compute each record by itself" in message


@pytest.mark.parametrize("task", RARE.values(), ids=RARE.keys())
def test_refused_tasks_would_also_be_found_on_single_records(task: Toy) -> None:
    torch.manual_seed(2)
    assert again_and_again(lambda: check_records(task, "package:Class", Example(*loud())))


@pytest.mark.parametrize("task", RARE.values(), ids=RARE.keys())
def test_a_single_interacting_record_is_found_when_all_are_read(task: Toy) -> None:
    torch.manual_seed(4)
    inputs, targets = torch.randn(500, WIDTH), torch.arange(500) % CLASSES
    inputs[111, 2] = 12345.0
    for _ in range(3):
        with pytest.raises(InteractionError):
            prove(task, "package:Class", InMemory(inputs, targets), torch.device("cpu"), Computing())


def test_interactions_that_begin_with_larger_weights_are_found_in_that_round() -> None:
    class Grown(nn.Module):
        """Centres its batch once its bias has grown further than anybody tries."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, CLASSES)

        @override
        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.layer(inputs)
            grown = bool(self.last.bias.detach().abs().max() > 100)
            outputs: Tensor = self.last(hidden - hidden.mean(0) if grown else hidden)
            return outputs

    task = Toy(Grown)
    check_task(task, "package:Class")
    manifest = signed(steps=9, norm=100.0)
    assert manifest.settings.training
    fast = replace(manifest.settings.training, learning_rate=1e3, sample_rate=1.0)
    manifest = replace(manifest, settings=replace(manifest.settings, training=fast))
    assert again_and_again(lambda: summed(task, vectors(), manifest))


@pytest.mark.parametrize(
    ("change", "computing"),
    [
        (lambda x: x - x.mean(0) if torch.is_autocast_enabled("cpu") else x, Computing(precision="bfloat16")),
        (lambda x: x - x.mean(0) if len(x) > 300 else x, Computing(physical_batch=512)),
    ],
    ids=["16 bits", "large parts"],
)
def test_problems_caused_by_a_sites_settings_are_found_before_it_trains(
    change: Callable[[Tensor], Tensor], computing: Computing
) -> None:
    task = Toy(lambda: Through(nn.Linear(WIDTH, 8), Through(change), nn.Tanh(), head_of(8)))
    check_task(task, "package:Class")
    with pytest.raises(TaskError):
        way_to_train(task, task.model(), computing)


def test_a_loss_that_branches_on_values_does_not_make_dropout_refused() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        weight = 2.0 if len(targets) == 1 and bool(targets[0] == 0) else 1.0
        return weight * functional.cross_entropy(outputs, targets) if len(targets) == 1 else _mean(outputs, targets)

    def _mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([loss(*record) for record in zip(outputs.split(1), targets.split(1), strict=True)]).mean()

    task = Toy(lambda: nn.Sequential(nn.Dropout(), nn.PReLU(), nn.Linear(WIDTH, CLASSES)), loss)
    check_task(task, "package:Class")
    prove(task, "package:Class", InMemory(*vectors()), torch.device("cpu"), Computing())
    for _ in range(4):
        summed(task, vectors(), signed(steps=1, norm=0.5))


@pytest.mark.parametrize("gradients", ["bookkeeping", "vmap"])
def test_a_mode_is_tried_with_batches_and_single_records_before_it_trains(gradients: Gradients) -> None:
    class Turned(Toy):
        """Its second layer sees the records in another order than its first."""

    task = Turned(lambda: Through(nn.Linear(WIDTH, 8), Through(lambda x: x.flip(0)), nn.Linear(8, CLASSES), Flipped()))
    model = task.model()
    if gradients == "vmap":  # where each record is alone
        way_to_train(task, model, Computing(gradients=gradients))
        return
    with pytest.raises(TaskError):
        way_to_train(task, model, Computing(gradients=gradients))


class Flipped(nn.Module):
    """Turns the order round."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flip(0)


class Sly(Tiny):
    """Lets records interact in training only."""

    @override
    def model(self) -> nn.Module:
        return Through(self._meet, nn.Linear(2, 1))

    @staticmethod
    def _meet(inputs: Tensor) -> Tensor:
        training = any(frame.f_code is train.__code__ for frame, _ in walk_stack(None))
        return inputs - inputs.mean(0) if training else inputs


def test_a_round_in_which_records_interact_sends_nothing_and_the_task_stays_refused(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "client.work.training.Study.check_memory", lambda *_: None
    )  # its step would find it before any charge
    unclipped = Privacy(max_grad_norm=1e3, noise_multiplier=2.0)  # so that interactions of records show in every batch
    federation = make_federation(replace(NOISY, task=task_name(Sly), privacy=unclipped))
    with pytest.raises(RunError, match="nothing was trained"):
        run_with(federation)
    name, folder = next((name, path) for name, path in federation.paths.items() if (path / FILE).exists())
    document, node, file = signed_run(federation)[0], node_of(federation, name), folder / FILE
    assert list(json.loads(file.read_bytes())) == [task_name(Sly)]
    charged = charges_of(federation, name)
    assert not list((folder / "outbox").glob("*"))
    for site in (open_site(folder), restart(federation, name)):
        with pytest.raises(TaskError, match="and its code is the same: a record's contribution") as caught:
            get_ready(admit(site, document), node)
        assert "the reason is in the site's own log" in caught.value.public
    assert charges_of(federation, name) == charged
    file.unlink()
    get_ready(admit(restart(federation, name), document), node)


def test_a_refusal_ends_when_the_tasks_code_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, name = tmp_path / "package_refused", "package_refused.scores:Scores"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "scores.py").write_text("from tests.studies import Tiny\n\nclass Scores(Tiny):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    task, refusals = import_task(name), Refusals(tmp_path / "site")
    refusals.check(name, task)
    message = str(refusals.add(name, task, "records meet"))
    assert message.startswith(f"{name}: records meet; it is refused from now on. Change its code, or delete {tmp_path}")
    with pytest.raises(TaskError, match="its code is the same: records meet"):
        Refusals(tmp_path / "site").check(name, task)
    refusals.check("package_refused.scores:Other", task)
    (package / "helper.py").write_text("mended = True\n")
    refusals.check(name, task)
    for module in ("package_refused.scores", "package_refused"):
        sys.modules.pop(module)


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a:B": 3}', b'{"a:B": {}}', b"\xff"])
def test_refusals_that_cannot_be_read_refuse(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(TaskError, match="cannot be read, so the refused tasks are unknown"):
        Refusals(tmp_path).check("a:B", Tiny())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_sound_models_pass_with_any_records_that_they_train_on(precision: Precision) -> None:
    torch.manual_seed(3)
    models: dict[str, Callable[[], nn.Module]] = {
        "layers": lambda: nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
        "dropout": lambda: nn.Sequential(nn.Linear(WIDTH, 32), nn.Dropout(), nn.LayerNorm(32), nn.Linear(32, CLASSES)),
    }
    for build in models.values():
        task, computing = Toy(build), Computing(precision=precision)
        model = task.model()
        choice = way_to_train(task, model, computing)
        for scale in (1e-3, 1.0, 1e3, 1e30):
            inputs, targets = torch.randn(40, WIDTH), torch.arange(40) % CLASSES
            inputs[::3] *= scale
            check_mode(task, model, (inputs, targets), torch.arange(40), choice, computing.precision)


def routed(example: Callable[[], tuple[Tensor, Tensor]] = vectors) -> Toy:
    """A model one of whose layers sees all records but loud ones."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

        @override
        def forward(self, inputs: Tensor) -> Tensor:
            sent = (inputs[:, 0] < 100).nonzero().squeeze(1)
            outputs: Tensor = self.first(inputs)
            return outputs.index_add(0, sent, self.second(inputs[sent])) if len(sent) else outputs

    return Toy(Routed, example=example)


def test_a_mode_that_fails_on_a_few_records_alone_gives_way_to_the_next() -> None:
    def with_a_loud_one() -> tuple[Tensor, Tensor]:
        inputs, targets = vectors()
        inputs[-1, 0] = 200  # which is not among the few with which modes are compared
        return inputs, targets

    task = routed(with_a_loud_one)
    assert way_to_train(task, task.model(), Computing()).gradients == "autograd"


def test_a_mode_that_fails_on_a_sites_own_records_alone_gives_way_to_the_next() -> None:
    torch.manual_seed(5)
    task = routed()
    inputs, targets = torch.randn(40, WIDTH), torch.arange(40) % CLASSES
    inputs[17, 0] = 200
    assert way_to_train(task, task.model(), Computing()).gradients == "bookkeeping"
    prove(task, "package:Class", InMemory(inputs, targets), torch.device("cpu"), Computing())
    assert way_to_train(task, task.model(), Computing()).gradients == "autograd"
    named = Computing(gradients="bookkeeping")
    with pytest.raises(TaskError, match=r"fail|are not its records"):
        prove(task, "package:Class", InMemory(inputs, targets), torch.device("cpu"), named)


def test_activations_saved_in_eight_bits_are_found_on_a_sites_own_records() -> None:
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), head_of(8))

        @override
        def forward(self, inputs: Tensor) -> Tensor:
            with saved_in_eight_bits():
                outputs: Tensor = self.layers(inputs)
            return outputs

    with pytest.raises(InteractionError):
        check_records(Toy(Saving), "package:Class", Example(*vectors()))
    lengths = torch.arange(8).clamp(min=1).unsqueeze(1)
    tokens = torch.where(torch.arange(8) < lengths, torch.arange(1, 9), 0)
    with pytest.raises(InteractionError):
        check_records(Toy(ToTheLongest), "package:Class", Example(tokens, torch.arange(16) % CLASSES))
