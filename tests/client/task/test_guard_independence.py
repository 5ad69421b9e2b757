"""Interactions of records in a model are found whatever its layers are called; messages name layer and remedy."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from tests.probes import CLASSES, LENGTH, WIDTH, Through, Toy, complaint, head, sequences, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.task.task import Task

NORMALISE = "use GroupNorm or LayerNorm"
BY_ITSELF = "compute each record by itself: no mean, sum, norm, sort or attention over dimension 0"
FIRST = "set batch_first=True, with the records in dimension 0"


class Renamed(nn.BatchNorm1d):
    """Batch normalisation under a name of its own."""


class AlwaysFrozen(nn.BatchNorm1d):
    """It is set to evaluation again and again, and still learns its statistics."""

    @override
    def train(self, mode: bool = True) -> AlwaysFrozen:
        super().train(mode=False)
        return self

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        return functional.batch_norm(inputs, self.running_mean, self.running_var, training=True)


class Residual(nn.Module):
    """A value common to all records enters with a weight that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(inputs + self.gate * inputs.mean(dim=0))
        return outputs


class Placed(nn.Module):
    """A weight for each place, added along the dimension of records instead of that of words."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(64, 1, WIDTH))
        self.head = nn.Linear(LENGTH * WIDTH, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head((inputs + self.places[: len(inputs)]).flatten(1))
        return outputs


class LastStep(nn.LSTM):
    """All states, without the last."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # type: ignore[override]
        outputs: Tensor = super().forward(inputs)[0]
        return outputs


def normalised(layer: Callable[[], nn.Module]) -> Task:
    return Toy(lambda: nn.Sequential(nn.Linear(WIDTH, 8), layer(), nn.Linear(8, CLASSES)))


def after(before: Callable[[Tensor], Tensor]) -> Task:
    return Toy(lambda: Through(before, head()))


def over_sequences(layer: Callable[[], nn.Module], width: int = WIDTH) -> Task:
    return Toy(lambda: nn.Sequential(layer(), nn.Flatten(), nn.Linear(LENGTH * width, CLASSES)), example=sequences)


def frozen() -> nn.Module:
    return nn.BatchNorm1d(8).requires_grad_(requires_grad=False)


def evaluating() -> nn.Module:
    return nn.BatchNorm1d(8).eval()


LAYER_1 = "its model's layer `1` ({}) mixes the records of a batch; " + NORMALISE
LAYER_0 = "its model's layer `0{}` ({}) mixes the records of a batch; "
BEFORE = "its model mixes the records of a batch before `layers.0` (Linear); " + BY_ITSELF
DEPENDENT = {
    "BatchNorm": (normalised(lambda: nn.BatchNorm1d(8)), LAYER_1.format("BatchNorm1d")),
    "BatchNorm without parameters": (
        normalised(lambda: nn.BatchNorm1d(8, affine=False)), LAYER_1.format("BatchNorm1d")),
    "BatchNorm with neither parameters nor statistics": (
        normalised(lambda: nn.BatchNorm1d(8, affine=False, track_running_stats=False)), LAYER_1.format("BatchNorm1d")),
    "BatchNorm of the batch alone": (
        normalised(lambda: nn.BatchNorm1d(8, track_running_stats=False)), LAYER_1.format("BatchNorm1d")),
    "frozen BatchNorm": (normalised(frozen), LAYER_1.format("BatchNorm1d")),
    "BatchNorm set to evaluate": (normalised(evaluating), LAYER_1.format("BatchNorm1d")),
    "BatchNorm that stays in evaluation": (normalised(lambda: AlwaysFrozen(8)), LAYER_1.format("AlwaysFrozen")),
    "BatchNorm by another name": (normalised(lambda: Renamed(8)), LAYER_1.format("Renamed")),
    "SyncBatchNorm": (normalised(lambda: nn.SyncBatchNorm(8)), LAYER_1.format("SyncBatchNorm")),
    "batch_norm as a function": (after(lambda x: functional.batch_norm(x, None, None, training=True)), BEFORE),
    "less the mean": (after(lambda x: x - x.mean(0)), BEFORE),
    "less the detached mean": (after(lambda x: x - x.mean(0).detach()), BEFORE),
    "less the mean without gradients": (after(lambda x: x - torch.no_grad()(torch.mean)(x, 0)), BEFORE),
    "over the largest": (after(lambda x: x / x.abs().max()), BEFORE),
    "sorted": (after(lambda x: x.sort(0)[0]), BEFORE),
    "added up": (after(lambda x: x.cumsum(0)), BEFORE),
    "softmax over records": (after(lambda x: x.softmax(0)), BEFORE),
    "in its own forward": (
        Toy(Residual), "its model mixes the records of a batch before `head` (Linear); " + BY_ITSELF),
    "after its last layer": (
        Toy(lambda: Through(lambda x: x, head(), Through(lambda x: x - x.mean(0)))),
        "its model mixes the records of a batch before `layers.1.layers` (Sequential); " + BY_ITSELF),
    "attention between records": (
        over_sequences(lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8)),
        LAYER_0.format(".self_attn", "MultiheadAttention") + FIRST),
    "a recurrent layer": (over_sequences(lambda: LastStep(WIDTH, 8), 8), LAYER_0.format("", "LastStep") + FIRST),
    "InstanceNorm with statistics": (
        over_sequences(lambda: nn.InstanceNorm1d(LENGTH, track_running_stats=True)),
        "its model's buffer `0.running_mean` changes in forward, past clipping and noise; keep buffers"),
    "among words": (
        Toy(lambda: nn.Sequential(nn.Embedding(9, 5), nn.BatchNorm1d(LENGTH), nn.Flatten(), nn.Linear(30, 3)),
             example=words), LAYER_1.format("BatchNorm1d")),
    "reshaped": (
        over_sequences(lambda: Through(lambda x: x.transpose(0, 1).reshape(x.shape))),
        "its model mixes the records of a batch before `0.layers` (Sequential); "),
    "over their number": (after(lambda x: x / len(x)), "its model gives a record a different output in another batch"),
    "by their place": (Toy(Placed, example=sequences), "its model gives a record a different output in another batch"),
    "mixed in one batch of ten": (after(lambda x: (x + x.flip(0)) / 2 if torch.rand(()) < 0.1 else x),
        "its model mixes the records of some batches, at random; " + BY_ITSELF),
    "mixed by another generator": (after(lambda x: x.flip(0) if random.random() < 0 else x),  # noqa: S311
        "its model does not draw from torch's default generator"),
    "mixed when it is evaluated": (
        Toy(lambda: Evaluated(head())), "the forward() of its model (Evaluated) mixes the records of a batch"),
    "one row for two": (
        Toy(lambda: nn.Sequential(nn.Flatten(), Through(lambda x: x.reshape(-1, 4), head())), example=sequences),
        "its model makes outputs of shape (30, 3) from 5 records; keep one row per record"),
    "one row for all": (after(lambda x: x.mean(0)), "its model makes outputs of shape (3,) from 5 records; keep"),
    "squeezed": (
        Toy(lambda: Through(lambda x: x, nn.Linear(WIDTH, 1), Through(torch.squeeze)),
             lambda outputs, targets: (outputs - targets).square().mean()),
        "its model makes outputs of shape () from 1 records; keep one row per record"),
}  # fmt: skip


class Evaluated(nn.Module):
    """Takes a little of all records off each, once it is trained: less than what a batch's size may change."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs if self.training else outputs - 1e-6 * outputs.sum(0)


@pytest.mark.parametrize(("task", "message"), DEPENDENT.values(), ids=DEPENDENT.keys())
def test_records_that_interact_are_refused_with_the_place_and_the_remedy(task: Task, message: str) -> None:
    assert complaint(task).startswith(message)
