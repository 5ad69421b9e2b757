"""A record's gradient depends on that record alone, or the task is refused, wherever records interact."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from tests.probes import CLASSES, LENGTH, WIDTH, Through, Toy, complaint, head, sequences, vectors, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.task.task import Task


def head_of(width: int) -> nn.Module:
    return nn.Linear(width, CLASSES)


# --- On the way back --------------------------------------------------------------------------------------------------


class Backwards(torch.autograd.Function):
    """Nothing on the way there; on the way back, whatever a test says."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ANN401 - torch's
        ctx.change = change
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        return ctx.change(gradients[0]), None


def normalised(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return gradient / (norm + 1e-6)


def clipped(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient)
    return gradient * (4 / (norm + 1e-6)).clamp(max=1.0)


def mostly(gradient: Tensor) -> Tensor:
    """Keeps the larger half of the batch's gradients."""
    return torch.where(gradient.abs() >= gradient.abs().median(), gradient, 0.0)


def less_the_mean(gradient: Tensor) -> Tensor:
    return gradient - gradient.mean(0)


def in_eight_bits(gradient: Tensor) -> Tensor:
    step = gradient.abs().max() / 127 + 1e-12
    return (gradient / step).round() * step


def backwards(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def through(inputs: Tensor) -> Tensor:
        outputs: Tensor = Backwards.apply(inputs, change)  # type: ignore[no-untyped-call]  # torch's
        return outputs

    return through


def by_function(change: Callable[[Tensor], Tensor]) -> Task:
    return Toy(lambda: Through(nn.Linear(WIDTH, 8), Through(backwards(change)), nn.Tanh(), nn.Linear(8, CLASSES)))


def by_hook(change: Callable[[Tensor], Tensor]) -> Task:
    def through(inputs: Tensor) -> Tensor:
        if inputs.requires_grad:
            inputs.register_hook(change)
        return inputs

    return Toy(lambda: Through(nn.Linear(WIDTH, 8), Through(through), nn.Tanh(), nn.Linear(8, CLASSES)))


def by_module_hook(change: Callable[[Tensor], Tensor], *, before: bool = False) -> Task:
    def model() -> nn.Module:
        layer = nn.Linear(8, CLASSES)
        if before:
            layer.register_full_backward_pre_hook(lambda _, gradients: tuple(map(change, gradients)))
        else:
            layer.register_full_backward_hook(lambda _, gradients, __: tuple(map(change, gradients)))
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), layer)

    return Toy(model)


def by_parameter(change: Callable[[Tensor], Tensor], *, late: bool = False) -> Task:
    def accumulated(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.copy_(change(parameter.grad))

    def model() -> nn.Module:
        layer = head()
        for parameter in layer.parameters():
            if late:
                parameter.register_post_accumulate_grad_hook(accumulated)
            else:
                parameter.register_hook(change)
        return layer

    return Toy(model)


# --- What is saved ----------------------------------------------------------------------------------------------------


@contextmanager
def saved_in_eight_bits() -> Iterator[None]:
    def pack(saved: Tensor) -> Any:  # noqa: ANN401 - whatever one likes
        if not saved.is_floating_point() or saved.dim() < 2:
            return saved
        step = saved.abs().max() / 127 + 1e-12
        return (saved / step).round().to(torch.int8), step

    def unpack(packed: Any) -> Tensor:  # noqa: ANN401 - whatever one likes
        return packed if isinstance(packed, Tensor) else packed[0].float() * packed[1]

    with saved_tensors_hooks(pack, unpack):
        yield


class Compressed(nn.Module):
    """Saves its activations in 8 bits with one scale for the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        with saved_in_eight_bits():
            outputs: Tensor = self.layers(inputs)
        return outputs


# --- What is kept aside -----------------------------------------------------------------------------------------------


class Noting(Toy):
    """The model notes something of its batch, and the loss uses it."""

    def __init__(self, note: Callable[[Tensor], Tensor], use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self._note, self._use, self.noted = note, use, torch.ones(())

    @override
    def model(self) -> nn.Module:
        def keep(inputs: Tensor) -> Tensor:
            self.noted = self._note(inputs.detach())
            return inputs

        return Through(keep, head())

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._use(super().loss(outputs, targets), self.noted)


class Averaging(nn.Module):
    """Takes a running mean off its inputs, in an attribute."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.layer, self._momentum, self._mean = head(), momentum, torch.zeros(WIDTH)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs - self._mean)
        if self.training:
            self._mean = self._mean + self._momentum * (inputs.detach().mean(0) - self._mean)
        return outputs


class Started(nn.Module):
    """Scales by the deviation of the first batch that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self._scale = head(), torch.zeros(WIDTH)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        if not self._scale.any():
            self._scale = inputs.detach().std(0)
        outputs: Tensor = self.layer(inputs / self._scale)
        return outputs


SEEN: dict[str, Tensor] = {}


def by_what_was_seen(inputs: Tensor) -> Tensor:
    scale = SEEN.get("largest", torch.ones(()))
    SEEN["largest"] = torch.maximum(scale, inputs.abs().max())
    return inputs / scale


class Lagging(Toy):
    """Weights each term by the mean of the terms before it."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        mean, self._mean = getattr(self, "_mean", 1.0), float(loss.detach()) if outputs.requires_grad else 1.0
        return loss * mean


# --- What the example does not lead to --------------------------------------------------------------------------------


def with_a_gap() -> tuple[Tensor, Tensor]:
    """The seventh record lacks a value."""
    inputs, targets = vectors()
    inputs[6, 1] = -1.0
    return inputs, targets


def filled(inputs: Tensor) -> Tensor:
    """Puts the batch's mean where a value is missing."""
    return torch.where(inputs == -1, inputs.mean(0), inputs)


def filled_with_zero_missing(inputs: Tensor) -> Tensor:
    gone = inputs == 0
    mean = inputs.sum(0) / (~gone).sum(0).clamp(min=1)
    return torch.where(gone, mean, inputs)


def whole_words() -> tuple[Tensor, Tensor]:
    """Sequences of which all but two are as long as can be."""
    drawn = torch.randint(1, 9, (8, LENGTH))
    drawn[5, 2:] = drawn[6, 4:] = 0
    return drawn, torch.arange(8) % CLASSES


class ToTheLongest(nn.Module):
    """Cuts tokens to the longest of the batch, and takes the mean over what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 5), nn.Linear(5, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        longest = int((inputs != 0).sum(1).max().clamp(min=1))
        outputs: Tensor = self.head(self.words(inputs[:, :longest]).mean(1))
        return outputs


def if_any(condition: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor]) -> Task:
    return Toy(lambda: Through(lambda x: change(x) if bool(condition(x).any()) else x, head()))


def in_large_batches(size: int) -> Task:
    return Toy(lambda: Through(lambda x: x - x.mean(0) if len(x) > size else x, head()))


# --- What is drawn ----------------------------------------------------------------------------------------------------


def seeded_mask(inputs: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return inputs * torch.bernoulli(torch.full_like(inputs, 0.5), generator=generator)


def numpy_mask(inputs: Tensor) -> Tensor:
    drawn = np.random.default_rng(0).random(tuple(inputs.shape), dtype=np.float32)
    return inputs * torch.from_numpy(drawn).round()


def reseeding(inputs: Tensor) -> Tensor:
    torch.manual_seed(3)
    return functional.dropout(inputs)


def reseeding_in_secret(inputs: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return functional.dropout(inputs)


def beside_dropout(change: Callable[[Tensor], Tensor]) -> Task:
    return Toy(lambda: nn.Sequential(nn.Dropout(0.2), Through(change, nn.Linear(WIDTH, 8)), nn.Tanh(), nn.Linear(8, 3)))


class OnlyTrained(nn.Module):
    """Does something to its inputs in training alone."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return self._change(inputs) if self.training else inputs


def mixed_up(inputs: Tensor) -> Tensor:
    return 0.9 * inputs + 0.1 * inputs[torch.randperm(len(inputs))]


# --- What comes to the same -------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """Its gradients, not its outputs, are divided by how many records there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs / len(inputs) + (outputs - outputs / len(inputs)).detach()


def quantised(inputs: Tensor) -> Tensor:
    step = inputs.abs().max() / 127
    return (inputs / step).round() * step


class StraightThrough(nn.Module):
    """Weighs gradients by how loud the batch is, beside outputs as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        part = outputs * inputs.abs().max()
        return part + (outputs - part).detach()


class Rarest(nn.Module):
    """Passes gradients of the largest outputs of the batch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        hardest = outputs.detach().amax(1).topk(max(1, len(outputs) // 2)).indices
        passed = torch.zeros(len(outputs), 1, dtype=torch.bool).index_fill(0, hardest, value=True)
        return torch.where(passed, outputs, outputs.detach())


ATTACKS: dict[str, Task] = {
    "a function that normalises": by_function(normalised),
    "a function that clips the batch": by_function(clipped),
    "a function that takes the mean off": by_function(less_the_mean),
    "a function that keeps what is large": by_function(mostly),
    "a function that rounds to 8 bits": by_function(in_eight_bits),
    "a function that sorts": by_function(lambda x: x.sort(0)[0]),
    "a function that turns the batch": by_function(lambda x: x.flip(0)),
    "a function that divides by the number": by_function(lambda x: x / len(x)),
    "a hook that normalises": by_hook(normalised),
    "a hook that clips the batch": by_hook(clipped),
    "a hook that rounds to 8 bits": by_hook(in_eight_bits),
    "a module's hook": by_module_hook(normalised),
    "a module's hook that clips": by_module_hook(clipped),
    "a module's hook before": by_module_hook(less_the_mean, before=True),
    "a parameter's hook": by_parameter(normalised),
    "a parameter's late hook": by_parameter(normalised, late=True),
    "saved in 8 bits": Toy(Compressed),
    "a loss over a deviation that was kept": Noting(lambda x: x.std() + 0.1, lambda loss, noted: loss / noted),
    "a loss times a largest value that was kept": Noting(lambda x: x.abs().max(), lambda loss, noted: loss * noted),
    "a loss over a number that was kept": Noting(
        lambda x: torch.tensor(float(len(x))), lambda loss, noted: loss / noted
    ),
    "a running mean": Toy(lambda: Averaging(0.1)),
    "a slow running mean": Toy(lambda: Averaging(1e-3)),
    "scaled by its first batch": Toy(Started),
    "the largest value ever": Toy(lambda: Through(by_what_was_seen, head())),
    "terms by earlier terms": Lagging(),
    "a gap filled with the mean": Toy(lambda: Through(filled, head()), example=with_a_gap),
    "a gap that the example lacks": Toy(lambda: Through(filled_with_zero_missing, head())),
    "cut to the longest": Toy(ToTheLongest, example=words),
    "cut to the longest, nearly all of which are whole": Toy(ToTheLongest, example=whole_words),
    "less the mean where a value is rare": if_any(lambda x: x > 50, lambda x: x - x.mean(0)),
    "softer where a value is rare": if_any(lambda x: x < -900, lambda x: x / 2),
    "softer where a record is zero": if_any(lambda x: (x == 0).any(1), lambda x: x / 2),
    "softer where records are the same": if_any(lambda x: (x == x[:1]).all(), lambda x: x / len(x)),
    "over how many differ": Toy(lambda: Through(lambda x: x / len(torch.unique(x, dim=0)), head())),
    "each record once": Toy(lambda: Through(lambda x: x / (x == x.unsqueeze(1)).all(2).sum(1, keepdim=True), head())),
    "a branch on the mean": Toy(lambda: Through(lambda x: x if bool(x.mean() > -0.3) else -x, head())),
    "large batches": in_large_batches(20),
    "larger batches": in_large_batches(63),
    "the largest batches": in_large_batches(200),
    "a seeded mask": Toy(lambda: Through(seeded_mask, head())),
    "a mask by numpy": Toy(lambda: Through(numpy_mask, head())),
    "a mask by numpy in training": Toy(lambda: nn.Sequential(OnlyTrained(numpy_mask), nn.Dropout(), head())),
    "a seed in forward": Toy(lambda: Through(reseeding, head())),
    "a seed in forward that nobody sees": Toy(lambda: Through(reseeding_in_secret, head())),
    "both seeded and not": beside_dropout(reseeding_in_secret),
    "the number of records, beside dropout": beside_dropout(OnlyTrained(lambda x: x / len(x))),
    "the mean, beside dropout": beside_dropout(OnlyTrained(lambda x: x - 1e-2 * x.mean(0))),
    "mixed up": Toy(lambda: nn.Sequential(OnlyTrained(mixed_up), head())),
    "gradients over the number": Toy(Weighted),
    "gradients by the loudest": Toy(StraightThrough),
    "gradients of the hardest": Toy(Rarest),
    "rounded": Toy(lambda: Through(quantised, head())),
    "a function, computed again": Toy(
        lambda: Through(
            nn.Linear(WIDTH, 8),
            Through(lambda x: cast("Tensor", checkpoint(backwards(normalised), x, use_reentrant=False))),
            nn.Linear(8, CLASSES),
        )
    ),
    "a function among sequences": Toy(
        lambda: nn.Sequential(
            nn.Linear(WIDTH, 8),
            Through(backwards(normalised)),
            nn.Flatten(),
            nn.Linear(8 * LENGTH, 3),
        ),
        example=sequences,
    ),
}


@pytest.mark.parametrize("task", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_task_whose_records_interact_anywhere_is_refused(task: Task) -> None:
    SEEN.clear()
    assert complaint(task)
