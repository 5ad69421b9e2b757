"""What every architecture of the zoo is made with: a model, records with something to learn, a loss, and its mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from client.settings import Gradients

    Records = tuple[Tensor, Tensor]

WORDS = 20  # in a vocabulary; the first is padding
RECORDS = 48


@dataclass(frozen=True)
class Architecture:
    """An ordinary model, and what it learns from."""

    mode: Gradients  # that `auto` gives it
    model: Callable[[], nn.Module]
    records: Callable[[int], Records]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    learning_rate: float = 0.5
    acceptance: str = "yes"  # or how, in the words of docs/models.md


class Ordinary(Task):
    """The task of an architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    @override
    def model(self) -> nn.Module:
        return self._architecture.model()

    @override
    def load(self, path: Path) -> Records:
        del path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self._architecture.records(RECORDS)

    @override
    def example(self) -> Records:
        return self._architecture.records(8)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._architecture.loss(outputs, targets)


def by_class(*shape: int, classes: int = 2) -> Callable[[int], Records]:
    """Records `(n, *shape)` of normal numbers, those of each class about a mean of its own."""

    def draw(count: int) -> Records:
        targets = torch.arange(count) % classes
        means = torch.randn(classes, *shape, generator=torch.Generator().manual_seed(7))
        return means[targets] + 0.5 * torch.randn(count, *shape), targets

    return draw


def texts(length: int = 8) -> Callable[[int], Records]:
    """Texts `(n, length)` of several lengths, padded at their end; the two classes use different words."""

    def draw(count: int) -> Records:
        targets = torch.arange(count) % 2
        words = torch.randint(1, WORDS // 2, (count, length)) + targets[:, None] * (WORDS // 2 - 1)
        lengths = torch.randint(2, length + 1, (count, 1))
        return words * (torch.arange(length) < lengths), targets

    return draw


class Residual(nn.Module):
    """Adds what layers make of an input to the input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.layers(inputs)
        return outputs


class Last(nn.Module):
    """The last step `(n, d)` of what a recurrent layer returns `(n, t, d)`."""

    @override
    def forward(self, outputs: tuple[Tensor, object]) -> Tensor:
        return outputs[0][:, -1]


class Mean(nn.Module):
    """The mean over everything between records and the last dimension."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1, -2).mean(1)


class Transposed(nn.Module):
    """Time before channels, or channels before time."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(1, 2)
