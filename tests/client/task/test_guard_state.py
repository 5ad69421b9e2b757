"""Nothing but the model is trained, and no batch leaves anything behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from typing_extensions import override

from client.task.guard import check_task
from tests.probes import CLASSES, WIDTH, Through, Toy, complaint, head

if TYPE_CHECKING:
    from client.task.task import Task

# --- Parameters outside of the model ---------------------------------------------------------------------------------


class Outside(Toy):
    """A layer of the task, not of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.ones(()))

    @override
    def model(self) -> nn.Module:
        return Through(self.encoder.forward, head())


class Listed(nn.Module):
    """Layers in a list, where torch does not see them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)]
        self.head = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        outputs: Tensor = self.head(inputs)
        return outputs


GLOBAL = nn.Parameter(torch.ones(WIDTH))


def test_parameters_outside_the_model_are_refused_by_name_and_get_no_gradient() -> None:
    task = Outside()
    assert "a parameter outside the model, `weight` of `encoder` of the task, which would" in complaint(task)
    assert all(parameter.grad is None for parameter in task.encoder.parameters())


def test_a_factor_of_the_loss_that_would_be_learned_is_refused() -> None:
    task = Outside()
    task._model = head
    task._loss = lambda outputs, targets: functional.cross_entropy(outputs * task.scale, targets)
    assert "a parameter outside the model, `scale` of the task, which" in complaint(task)
    assert task.scale.grad is None


def test_layers_in_a_list_are_refused_with_the_remedy() -> None:
    message = complaint(Toy(Listed))
    assert "of `layers` of its model" in message
    assert "nn.ModuleList instead of a list" in message


def test_a_parameter_without_a_name_is_identified_by_its_shape() -> None:
    assert "one of shape (4,)" in complaint(Toy(lambda: Through(lambda x: x * GLOBAL, head())))
    assert GLOBAL.grad is None


# --- What runs leave behind ------------------------------------------------------------------------------------------


class Stepping(Toy):
    """Takes its own steps, in its loss or as soon as there is a gradient."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self._at_once = at_once

    @override
    def model(self) -> nn.Module:
        module = head()
        self._optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        if self._at_once:
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(lambda _: self._optimizer.step())
        return module

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not self._at_once:
            self._optimizer.step()
        return super().loss(outputs, targets)


class Learning(Toy):
    """Computes its gradients itself."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        return loss


class Shrinking(nn.Linear):
    """Bounds its weights whenever it is used."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        self.weight.data.mul_(0.99)
        return super().forward(inputs)


class Echo(nn.Linear):
    """A little of the last batch is in the next."""

    last: Tensor | float = 0.0

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        outputs = super().forward(inputs)
        mixed, self.last = outputs + self.last, outputs.detach().mean()
        return mixed


class FirstBatch(nn.Linear):
    """Its bias is set from the first batch that it sees, as activation normalisation does."""

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.seen = False

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        if not self.seen:
            self.seen = True
            self.bias.data = -super().forward(inputs).mean(0).detach()
        return super().forward(inputs)


class Drifting(nn.Module):
    """A frozen layer that follows the trained one, a little with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.follows, self.trained = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)
        self.follows.requires_grad_(requires_grad=False)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        self.follows.weight.data.lerp_(self.trained.weight.data, 0.1)
        outputs: Tensor = self.trained(inputs)
        return outputs


class Thawing(nn.Module):
    """A frozen layer that is trained from the second batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.Linear(WIDTH, WIDTH).requires_grad_(requires_grad=False), head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.trained(self.frozen(inputs))
        self.frozen.requires_grad_()
        return outputs


STATES: dict[str, tuple[Task, str]] = {
    "steps in the loss": (Stepping(at_once=False), "parameters of its model change in its loss, past"),
    "steps in the backward pass": (Stepping(at_once=True), "parameters of its model change in a backward pass, past"),
    "gradients in the loss": (Learning(), "its loss computes gradients itself; return the loss, and leave"),
    "weights that change": (
        Toy(lambda: Shrinking(WIDTH, CLASSES)), "its model remembers earlier batches"),
    "an echo": (Toy(lambda: Echo(WIDTH, CLASSES)), "its model remembers earlier batches"),
    "inputs that change": (
        Toy(lambda: nn.Sequential(nn.ReLU(inplace=True), head())),
        "its model or loss changes the records"),
    "power iteration": (
        Toy(lambda: parametrizations.spectral_norm(head())), "its model remembers earlier batches"),
    "weights set by the first batch": (Toy(FirstBatch), "its model remembers earlier batches"),
    "frozen weights that move": (Toy(Drifting), "parameters of its model change in forward, past"),
    "what is trained changes": (
        Toy(Thawing), "parameters of its model change in forward, past"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "message"), STATES.values(), ids=STATES.keys())
def test_a_task_that_keeps_state_between_runs_is_refused(task: Task, message: str) -> None:
    assert complaint(task).startswith(message)


def test_the_guard_leaves_no_gradients_at_a_sound_task() -> None:
    modules: list[nn.Module] = []

    def noted() -> nn.Module:
        modules.append(head())
        return modules[-1]

    check_task(Toy(noted), "package:Class")
    assert modules
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())
