"""Tasks that tests put together from parts, to be tried by the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.guard import check_task
from client.task.task import Task
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable

    Records = tuple[Tensor, Tensor]

WIDTH, CLASSES, LENGTH = 4, 3, 6


def vectors() -> Records:
    """Eight records of three classes: `(8, 4)` and `(8,)`."""
    return torch.randn(8, WIDTH), torch.arange(8) % CLASSES


def sequences() -> Records:
    """Eight sequences of vectors: `(8, 6, 4)` and `(8,)`."""
    return torch.randn(8, LENGTH, WIDTH), torch.arange(8) % CLASSES


def words() -> Records:
    """Eight sequences of words, padded at their end with zero: `(8, 6)` and `(8,)`."""
    drawn = torch.randint(1, 9, (8, LENGTH))
    return drawn * (torch.arange(LENGTH) < torch.arange(8).unsqueeze(1) % 5 + 1), torch.arange(8) % CLASSES


class Toy(Task):
    """A classifier of `vectors`, but for what a test puts in its place."""

    def __init__(
        self,
        model: Callable[[], nn.Module] = lambda: nn.Linear(WIDTH, CLASSES),
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
        example: Callable[[], Records] = vectors,
        metrics: Callable[[Tensor, Tensor], dict[str, Tensor]] = lambda _, __: {},
    ) -> None:
        self._model, self._loss, self._example, self._metrics = model, loss, example, metrics

    @override
    def model(self) -> nn.Module:
        return self._model()

    @override
    def example(self) -> Records:
        return self._example()

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self._metrics(outputs, targets)


class Through(nn.Module):
    """Layers with anything one likes before them."""

    def __init__(self, before: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self._before = before
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layers(self._before(inputs))
        return outputs


def head() -> nn.Module:
    """A layer from `WIDTH` to `CLASSES`."""
    return nn.Linear(WIDTH, CLASSES)


def complaint(task: Task) -> str:
    """What the guard says of a task, without its name."""
    with pytest.raises(TaskError) as caught:
        check_task(task, "package:Class")
    name, _, message = str(caught.value).partition(": ")
    assert name == "package:Class"
    assert len(message.splitlines()) == 1
    return message
