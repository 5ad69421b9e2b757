"""Losses that torch can add at once give the gradients of separate records; what does anything else is not known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.gradients.known_losses import sum_of_losses
from client.gradients.loss import RecordLoss
from tests.client.specimens import Scores

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Tensor, Tensor], Tensor]

CLASSES = torch.tensor([0, 2, 1, -100, 2])
ONE_HOT = functional.one_hot(CLASSES.clamp(min=0), 3).float()
NUMBERS = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
SCORES = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))

KNOWN: dict[str, tuple[Loss, Tensor, Tensor]] = {
    "classes": (functional.cross_entropy, SCORES, CLASSES),
    "as a module": (nn.CrossEntropyLoss(label_smoothing=0.2), SCORES, CLASSES),
    "one class ignored": (lambda o, t: functional.cross_entropy(o, t, ignore_index=2), SCORES, CLASSES.clamp(min=0)),
    "shares": (functional.cross_entropy, SCORES, SCORES.softmax(1).flip(0)),
    "a column of classes": (
        lambda o, t: functional.cross_entropy(o, t.squeeze(1).long()),
        SCORES,
        NUMBERS.unsqueeze(1),
    ),
    "squares": (functional.mse_loss, SCORES, SCORES.flip(0)),
    "squares, the other way round": (lambda o, t: functional.mse_loss(t, o), SCORES, SCORES.flip(0)),
    "squares of single numbers": (lambda o, t: functional.mse_loss(o.squeeze(-1), t), SCORES[:, :1], NUMBERS),
    "yes or no": (nn.BCEWithLogitsLoss(), SCORES, ONE_HOT),
    "whole yes or no": (
        lambda o, t: functional.binary_cross_entropy_with_logits(o, t.unsqueeze(1).float()),
        SCORES[:, :1],
        NUMBERS.long(),
    ),
}


class Asked(Scores):
    """A task of which only the loss matters."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self._loss = loss

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)


def separate(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return every record's gradient, from a batch of one."""
    rows: list[Tensor] = []
    for output, target in zip(outputs.split(1), targets.split(1), strict=True):
        held = output.clone().requires_grad_()
        rows.append(*torch.autograd.grad(loss(held, target), held))
    return torch.cat(rows)


@pytest.mark.parametrize(("loss", "outputs", "targets"), KNOWN.values(), ids=KNOWN.keys())
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_a_known_loss_has_the_gradients_of_separate_records(
    loss: Loss, outputs: Tensor, targets: Tensor, scale: float
) -> None:
    outputs = outputs * scale
    assert sum_of_losses(loss, outputs, targets) is not None
    gradients = RecordLoss(Asked(loss)).gradients(outputs, targets)
    torch.testing.assert_close(gradients, separate(loss, outputs, targets), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        gradients, RecordLoss(Asked(loss), recognise=False).gradients(outputs, targets), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_record_whose_loss_is_not_finite_leaves_the_others_as_they_were(bad: float) -> None:
    for loss, outputs, targets in KNOWN.values():
        others = outputs.clone()
        others[1] = bad
        kept = torch.arange(5) != 1
        gradients, right = (
            RecordLoss(Asked(loss)).gradients(predictions, targets) for predictions in (others, outputs)
        )
        assert torch.equal(gradients[kept], right[kept])


def noted(seen: list[Tensor]) -> Loss:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs)
        return functional.cross_entropy(outputs, targets)

    return loss


def tried(outputs: Tensor, targets: Tensor) -> Tensor:
    try:
        outputs.sum()
    except Exception:  # noqa: BLE001 - as some code does
        return functional.cross_entropy(outputs, targets)
    return functional.cross_entropy(outputs, targets)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        del ctx
        return values * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        del ctx
        return gradients[0] * 2


def scripted(values: Tensor) -> Tensor:
    return values * 2


UNKNOWN: dict[str, Loss] = {
    "looks at a value": lambda o, t: functional.cross_entropy(o, t) * (2.0 if float(o[0, 0]) > 0 else 1.0),
    "looks at a target": lambda o, t: functional.cross_entropy(o, t) if int(t[0]) else o.sum(),
    "looks through numpy": lambda o, t: functional.cross_entropy(o, t) * float(np.asarray(o.detach()).sum()),
    "catches what ends it": tried,
    "multiplies": lambda o, t: 2 * functional.cross_entropy(o, t),
    "multiplies in place": lambda o, t: functional.cross_entropy(o.mul_(2), t),
    "draws": lambda o, t: functional.cross_entropy(functional.dropout(o), t),
    "draws beside it": lambda o, t: (torch.rand(3), functional.cross_entropy(o, t))[1],
    "calls two": lambda o, t: functional.cross_entropy(o, t) + functional.cross_entropy(o, t),
    "returns the first of two": lambda o, t: [functional.cross_entropy(o, t), functional.cross_entropy(o, t)][0],
    "returns something else": lambda _o, _t: torch.zeros((), requires_grad=True),
    "weighs classes": lambda o, t: functional.cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 3.0])),
    "sums": lambda o, t: functional.cross_entropy(o, t, reduction="sum"),
    "sums in the old way": lambda o, t: functional.cross_entropy(o, t, size_average=False),
    "has its own derivative": lambda o, t: functional.cross_entropy(Doubled.apply(o), t),  # type: ignore[no-untyped-call]
    "is compiled": lambda o, t: functional.cross_entropy(torch.jit.script(scripted)(o), t),
    "goes over the batch": lambda o, t: functional.cross_entropy(o.squeeze(0).unsqueeze(0), t),
    "fails": lambda o, t: functional.cross_entropy(o, t.missing),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("loss", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_a_loss_with_other_operations_is_not_recognised(loss: Loss) -> None:
    outputs, before = SCORES.clone(), torch.get_rng_state()
    assert sum_of_losses(loss, outputs, CLASSES.clamp(min=0)) is None
    assert torch.equal(outputs, SCORES)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (functional.cross_entropy, torch.randn(5, 3, 2), torch.zeros(5, 2, dtype=torch.long)),
        (functional.mse_loss, SCORES[:, :1], NUMBERS),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1.0, 1.0])), SCORES, ONE_HOT),
    ],
    ids=["several positions", "other shapes", "weights"],
)
def test_a_loss_that_is_not_a_plain_mean_is_not_recognised(loss: Loss, outputs: Tensor, targets: Tensor) -> None:
    assert sum_of_losses(loss, outputs, targets) is None


def test_a_loss_cannot_keep_records() -> None:
    seen: list[Tensor] = []
    assert sum_of_losses(noted(seen), SCORES, CLASSES) is not None
    assert [tensor.shape for tensor in seen] == [(1, 3)]
    assert not seen[0].any()


def test_a_loss_that_changes_is_mapped_from_then_on() -> None:
    calls: list[tuple[int, ...]] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = functional.cross_entropy(outputs, targets)
        calls.append(tuple(outputs.shape) if len(calls) else ())
        return value

    records = RecordLoss(Asked(loss))
    for _ in range(3):
        torch.testing.assert_close(records.gradients(SCORES, NUMBERS.long()), separate(loss, SCORES, NUMBERS.long()))
    assert len(calls) == 3 * 5 + 1 + 2


def test_targets_out_of_range_still_fail() -> None:
    for recognise in (True, False):
        with pytest.raises((IndexError, RuntimeError), match=r"out of bounds"):
            RecordLoss(Scores(), recognise=recognise).gradients(SCORES, CLASSES.clamp(min=0) + 7)
