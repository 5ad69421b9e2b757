"""The guard takes every sound task, whatever layers it has, and leaves no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from client.task.forms import form_of
from client.task.guard import check_task
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.idle import Idle
from tests.probes import CLASSES, LENGTH, WIDTH, Through, Toy, head, sequences, vectors, words
from tests.studies import Tiny, Wide

if TYPE_CHECKING:
    from client.task.task import Task


class Attention(nn.Module):
    """Attention within each record."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.attention(inputs, inputs, inputs, need_weights=False)[0].mean(dim=1))
        return outputs


class Recurrent(nn.Module):
    """The last state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, 8, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.lstm(inputs)[0][:, -1])
        return outputs


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each record's term by its own weight."""
    weights = torch.tensor([1.0, 5.0, 20.0])[targets]
    return (functional.cross_entropy(outputs, targets, reduction="none") * weights).mean()


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)


def over_sequences(*layers: nn.Module, width: int = LENGTH * WIDTH) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


def tied() -> nn.Module:
    one, other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    other.weight = one.weight
    return nn.Sequential(one, nn.ReLU(), other, head())


class Zeroed(nn.Linear):
    """Its weights start at zero."""

    @override
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Constants(nn.Module):
    """A frozen backbone, buffers of several types, and a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8)).requires_grad_(requires_grad=False)
        self.register_buffer("places", torch.arange(8), persistent=False)
        self.register_buffer("mask", torch.arange(8) > 1)
        self.temperature, self.head = nn.Parameter(torch.ones(())), nn.Linear(8, CLASSES)

    @override
    def train(self, mode: bool = True) -> Constants:
        super().train(mode)
        self.backbone.eval()
        return self

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(inputs)[:, self.places] * self.mask) * self.temperature
        return outputs


def of_type(kind: torch.dtype, inputs: Tensor) -> Toy:
    """Reads inputs of this type, which its model turns into float32."""
    return Toy(lambda: Through(lambda x: x.float() / 64, head()), example=lambda: (inputs.to(kind), vectors()[1]))


SOUND: dict[str, Task] = {
    "the reference study": Diagnosis(),
    "the study of nothing": Idle(),
    "a regression": Tiny(),
    "two layers": Wide(),
    "a classifier": Toy(metrics=lambda outputs, targets: {"accuracy": (outputs.argmax(1) == targets).float()}),
    "convolutions, GroupNorm and dropout": Toy(
        lambda: over_sequences(nn.Conv1d(LENGTH, 8, 1), nn.GroupNorm(2, 8), nn.Dropout(), width=32), example=sequences
    ),
    "InstanceNorm": Toy(lambda: over_sequences(nn.InstanceNorm1d(LENGTH)), example=sequences),
    "dropout as a function": Toy(lambda: Through(functional.dropout, head())),
    "attention within records": Toy(Attention, example=sequences),
    "a transformer": Toy(lambda: over_sequences(encoder()), example=sequences),
    "an LSTM": Toy(Recurrent, example=sequences),
    "words with padding": Toy(
        lambda: nn.Sequential(nn.Embedding(9, 5, padding_idx=0), nn.Flatten(), nn.Linear(30, 3)), example=words
    ),
    "tied weights": Toy(tied),
    "frozen parts and buffers": Toy(Constants),
    "an unused parameter": Toy(lambda: Through(lambda x: x, head(), Unused())),
    "weights that begin at zero": Toy(lambda: Zeroed(WIDTH, CLASSES)),
    "a domain of its own": Toy(
        lambda: Through(torch.log, head()), example=lambda: (torch.rand(8, 4) + 1, vectors()[1])),
    "activations computed again": Toy(
        lambda: Through(lambda x: cast("Tensor", checkpoint(torch.tanh, x, use_reentrant=False)), head())
    ),
    "activations in place": Toy(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))),
    "weights of records": Toy(loss=weighted),
    "a weight for positives": Toy(
        lambda: nn.Linear(WIDTH, 1),
        lambda outputs, targets: functional.binary_cross_entropy_with_logits(
            outputs[:, 0], targets, pos_weight=torch.tensor(9.0)
        ),
        lambda: (torch.randn(4, WIDTH), torch.tensor([0.0, 1.0, 1.0, 0.0])),
    ),
    "one class for each word": Toy(
        lambda: nn.Embedding(9, 9),
        lambda outputs, targets: functional.cross_entropy(outputs.transpose(1, 2), targets),
        lambda: (words()[0], words()[0].flip(1)),
    ),
    "probabilities": Toy(
        lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.Sigmoid()),
        functional.binary_cross_entropy,
        lambda: (torch.randn(4, WIDTH), torch.tensor([[0.0], [1.0], [1.0], [0.0]])),
    ),
    "truth values": of_type(torch.bool, torch.rand(8, WIDTH) > 0.5),
    "halves": of_type(torch.float16, torch.randn(8, WIDTH)),
    "bytes": of_type(torch.uint8, torch.randint(256, (8, WIDTH))),
    "all of a short integer": of_type(torch.int16, torch.tensor([[-(1 << 15)], [(1 << 15) - 1]]).repeat(4, WIDTH)),
    "all of a long integer": of_type(torch.int64, torch.randint(-(1 << 62), 1 << 62, (8, WIDTH)) * 2),
}  # fmt: skip


class Unused(nn.Module):
    """A parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize("task", SOUND.values(), ids=SOUND.keys())
def test_a_sound_task_is_taken_and_torch_is_left_as_it_was(task: Task) -> None:
    before = torch.get_rng_state()
    example = check_task(task, "package:Class")
    assert torch.equal(torch.get_rng_state(), before)
    assert form_of(example.inputs) == form_of(task.example()[0])


def test_it_can_be_asked_where_gradients_are_off_and_leaves_them_off() -> None:
    with torch.no_grad():
        check_task(Toy(), "package:Class")
        assert not torch.is_grad_enabled()


def test_a_task_may_compile_its_model() -> None:
    check_task(Toy(lambda: Through(torch.compile(torch.relu, backend="eager"), nn.Dropout(0.1), head())), "toy")
