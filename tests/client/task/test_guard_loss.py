"""A loss is the mean of one term for each record, of its outputs alone, or it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from tests.probes import CLASSES, WIDTH, Through, Toy, complaint, head, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.task.task import Task


WEIGHTS = torch.tensor([1.0, 5.0, 20.0])
NO_MEAN = (
    "its loss over a batch is not the mean of its records' own losses; give each record one term that depends on no"
)


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="sum")


def class_weights(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, weight=WEIGHTS)


def weights_of_the_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    terms = functional.cross_entropy(outputs, targets, reduction="none")
    return (terms / torch.bincount(targets, minlength=CLASSES)[targets]).mean()


def ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=0)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    likeness = outputs @ outputs.T
    return functional.cross_entropy(likeness, torch.arange(len(targets)))


def ranking(outputs: Tensor, targets: Tensor) -> Tensor:
    above = (targets.unsqueeze(0) - targets.unsqueeze(1)).clamp(min=0)
    return (above * (outputs[:, :1] - outputs[:, :1].T).sigmoid()).mean()


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted, predicted = functional.one_hot(targets, CLASSES), outputs.sigmoid()
    return 1 - 2 * (wanted * predicted).sum() / (wanted + predicted).sum()


def amounts() -> tuple[Tensor, Tensor]:
    return torch.randn(8, WIDTH), torch.randn(8)


def broadcast(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs[:, :1] - targets).square().mean()


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets) + outputs.var(dim=0, unbiased=False).mean()


def mixed_up(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs * torch.rand(len(outputs), 1), targets)


LOSSES: dict[str, tuple[Task, str]] = {
    "a sum": (Toy(loss=summed), "its loss is a sum over the batch; return the mean over its records"),
    "class weights": (Toy(loss=class_weights), NO_MEAN),
    "the module with class weights": (Toy(loss=nn.CrossEntropyLoss(weight=WEIGHTS)), NO_MEAN),
    "weights by the batch's own frequencies": (Toy(loss=weights_of_the_batch), NO_MEAN),
    "ignore_index": (Toy(lambda: nn.Embedding(9, 9), ignoring, lambda: (words()[0], words()[0])), NO_MEAN),
    "contrastive": (Toy(loss=contrastive), NO_MEAN),
    "ranking": (Toy(loss=ranking), NO_MEAN),
    "dice over the batch": (Toy(loss=dice), NO_MEAN),
    "outputs broadcast against targets": (Toy(loss=broadcast), NO_MEAN),
    "a column broadcast against amounts": (
        Toy(lambda: nn.Linear(WIDTH, 1), functional.mse_loss, amounts),
        "its loss over a batch is not the mean of its records' own losses: outputs are float32 (n, 1) and targets flo"),
    "the spread of outputs": (Toy(loss=spread), NO_MEAN),
    "the root of the mean": (Toy(loss=lambda a, b: functional.cross_entropy(a, b).sqrt()), NO_MEAN),
    "random weights": (Toy(loss=mixed_up), "its loss gives different values for the same outputs; it must not draw"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "message"), LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_that_is_not_the_mean_of_one_term_per_record_is_refused(task: Task, message: str) -> None:
    assert complaint(task).startswith(message)


class Burdened(Toy):
    """A term that is not of the outputs."""

    def __init__(self, term: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self._term = term
        self._latest: list[nn.Module] = []

    @override
    def model(self) -> nn.Module:
        self._latest = [head()]
        return self._latest[0]

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) + self._term(self._latest[0])


def proximal(module: nn.Module) -> Tensor:
    return 50 * torch.stack([(parameter - 1).square().sum() for parameter in module.parameters()]).sum()


def decay(module: nn.Module) -> Tensor:
    return 0.01 * torch.stack([parameter.norm() for parameter in module.parameters()]).sum()


def test_a_fedprox_term_is_refused() -> None:
    assert complaint(Burdened(proximal)).startswith("its loss has a gradient that does not pass through the outputs; ")


def test_weight_decay_in_the_loss_is_refused() -> None:
    assert "leave out terms on parameters (weight decay, FedProx)" in complaint(Burdened(decay))


class Remembering(Toy):
    """The model notes its activations for the loss."""

    @override
    def model(self) -> nn.Module:
        self._kept = Tensor()

        def keep(inputs: Tensor) -> Tensor:
            self._kept = inputs
            return inputs

        return nn.Sequential(nn.Linear(WIDTH, WIDTH), Through(keep, head()))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) + self._kept.square().mean()


def test_a_term_on_activations_that_the_model_keeps_aside_is_refused() -> None:
    assert "return from the model everything else that the loss needs" in complaint(Remembering())


class Counting(Toy):
    """A loss that changes as time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self._calls += 1
        return super().loss(outputs, targets) * 0.999**self._calls


def test_a_loss_that_changes_from_call_to_call_is_refused() -> None:
    assert complaint(Counting()).startswith(("its loss over a batch is not", "its loss gives different values"))
