"""Where a model or a loss fails on made-up records, a task is refused with what to write instead."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from tests.probes import Through, Toy, complaint

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Tensor, Tensor], Tensor]

NUMBERS = torch.arange(32).reshape(8, 4) % 7
ENTROPY, LOGITS = functional.cross_entropy, functional.binary_cross_entropy_with_logits


def vectors(*shape: int) -> Tensor:
    return torch.rand(8, *shape)


def classes(count: int) -> Tensor:
    return torch.arange(8) % count


def network(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: deepcopy(nn.Sequential(*layers))


class Words(nn.Module):
    """Takes two tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    @override
    def forward(self, ids: Tensor, values: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.words(ids) + values)
        return outputs


class Many(nn.Module):
    """Takes five tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    @override
    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.cat(inputs, 1))
        return outputs


class Scaled(nn.Module):
    """Multiplies by a constant of another type."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(inputs * torch.ones(4, dtype=torch.float64))
        return outputs


@torch.inference_mode()
def inferred(inputs: Tensor) -> Tensor:
    return inputs * 2


def exiting(_: Tensor) -> Tensor:
    sys.exit(3)


def slopes(inputs: Tensor) -> Tensor:
    held = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(held.square().sum(), held, create_graph=True)
    return slope


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Tensor, Loss, str]] = {
    "doubles": (network(nn.Linear(4, 2)), vectors(4).double(), classes(2), ENTROPY, "return inputs.float() from"),
    "whole numbers": (network(nn.Linear(4, 2)), NUMBERS, classes(2), ENTROPY,
                      "inputs int64 (n, 4), as its example() makes them up"),
    "numbers of words": (network(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2)), 8 * vectors(4), classes(2),
                         ENTROPY, "return inputs.long() from example() and load() instead"),
    "unsigned images without channels": (
        network(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), NUMBERS.reshape(8, 2, 2).byte().repeat(1, 2, 2),
        classes(2), ENTROPY, "return inputs.float().unsqueeze(1) from example() and load() instead"),
    "channels last": (network(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)), vectors(4, 4, 3), classes(2), ENTROPY,
                      "return inputs.movedim(-1, 1) from example() and load() instead"),
    "doubles of many": (Many, [*[vectors(1)] * 4, vectors(1).double()], classes(2), ENTROPY,
                        "return inputs[4].float() from example() and load() instead"),
    "a constant of doubles": (Scaled, vectors(4), classes(2), ENTROPY,
                              "(Linear) takes float32 numbers, but gets float64, in float64 (n, 4); write .float() be"),
    "words as numbers": (lambda: Through(lambda x: x + 0.0, nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2)), NUMBERS,
                         classes(2), ENTROPY, "int64 numbers, but gets float32, in float32 (n, 4); write .long() befo"),
    "several for one": (network(nn.Linear(4, 2)), (vectors(2), vectors(2)), classes(2), ENTROPY,
                        "is called as forward(…, …), with the inputs that its example() returns; write forward(self, "),
    "another name": (network(nn.Linear(4, 2)), {"image": vectors(4)}, classes(2), ENTROPY,
                     "is called as forward(image=…), with the inputs that its example() returns; write forward(self"),
    "inference": (lambda: Through(inferred, nn.Linear(4, 2)), vectors(4), classes(2), ENTROPY,
                  "write torch.no_grad() there instead"),
    "derivatives": (lambda: Through(slopes, nn.Linear(4, 2)), vectors(4), classes(2), ENTROPY,
                    "write torch.func.vmap(torch.func.grad(…)) in place of torch.autograd.grad"),
    "derivatives of copies": (lambda: Through(torch.enable_grad()(slopes), nn.Linear(4, 2)), vectors(4), classes(2),
                              ENTROPY, "write torch.func.vmap(torch.func.grad(…)) in place of torch.autograd.grad"),
    "a batch of eight": (lambda: Through(lambda x: x.reshape(8, 4), nn.Linear(4, 2)), vectors(4), classes(2), ENTROPY,
                         "takes batches of 8, but not of 5; let it take any number of records"),
    "all at once": (network(nn.Flatten(0), nn.Linear(32, 16), nn.Unflatten(0, (8, 2))), vectors(4), classes(2), ENTROPY,
                    "takes batches of 8, but not of 5; let it take any number of records"),
    "a word that another record has": (network(nn.EmbeddingBag(5, 2)), NUMBERS, classes(2), ENTROPY,
                                       "write nn.EmbeddingBag(7, 2), or"),
    "no single record": (lambda: Through(lambda x: x.std(0) * 0 + x if len(x) > 1 else x[0, 1], nn.Linear(4, 2)),
                         vectors(4), classes(2), ENTROPY, "takes batches of 2, but not of 1; let it take any number"),
    "all flat": (network(nn.Flatten(0), nn.Linear(32, 2)), vectors(4), classes(2), ENTROPY,
                 "keep the records in dimension 0, by flattening from dimension 1 on, or"),
    "positions": (lambda: Through(lambda x: torch.arange(x.shape[1]).repeat(len(x), 1), nn.Embedding(3, 2)), NUMBERS,
                  classes(2), ENTROPY, "(Embedding) takes 3 different numbers, but gets 4,"),
    "negative words": (network(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(8, 2)), NUMBERS - 1, classes(2), ENTROPY,
                       "takes 0 as the smallest number, but gets -1, in int64 (n, 4); number words from 0, or let"),
    "a bag of words": (network(nn.EmbeddingBag(3, 2)), NUMBERS, classes(2), ENTROPY, "write nn.EmbeddingBag(7, 2), or"),
    "transposed": (network(nn.ConvTranspose2d(3, 2, 3)), vectors(1, 4, 4), classes(2), ENTROPY,
                   "write nn.ConvTranspose2d(1, 2, …), or"),
    "attention": (network(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)), vectors(5, 6), classes(2), ENTROPY,
                  "(MultiheadAttention) takes 4 numbers, but gets 6, in float32 (n, 5, 6); make it 6 wide, or let"),
    "all that a layer returns": (network(nn.GRU(4, 2, batch_first=True), nn.Linear(2, 2)), vectors(5, 4), classes(2),
                                 ENTROPY, "layer `1` (Linear) gets a tuple; give it one tensor, such as the first"),
    "a frozen layer in 16 bits": (
        network(nn.Linear(4, 4).half().requires_grad_(requires_grad=False), nn.Linear(4, 2)), vectors(4), classes(2),
        ENTROPY, "takes float16 numbers, but gets float32, in float32 (n, 4); write .to(torch.float16) before it, and"),
    "an exit": (lambda: Through(exiting, nn.Linear(4, 2)), vectors(4), classes(2), ENTROPY,
                "its model fails on 5 made-up records (SystemExit: 3); correct it"),
    "half outputs": (lambda: Through(lambda x: x, nn.Linear(4, 2), Through(Tensor.half)), vectors(4), classes(2),
                     ENTROPY, "returns float16 (n, 2); return float32, for example outputs.float()"),
    "by name": (Words, {"ids": classes(5).float(), "values": vectors(4).double()}, classes(2), ENTROPY,
                "return inputs['ids'].long() and inputs['values'].float() from"),
    "no channel": (network(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)), vectors(4, 4), classes(2), ENTROPY,
                   "return inputs.unsqueeze(1) from"),
    "images": (network(nn.Linear(16, 2)), vectors(1, 4, 4), classes(2), ENTROPY, "return inputs.flatten(1) from"),
    "width": (network(nn.Linear(9, 3), nn.Linear(3, 2)), vectors(4), classes(2), ENTROPY,
              "layer `0` (Linear) takes 9 numbers, but gets 4, in float32 (n, 4); write nn.Linear(4, 3), or let"),
    "inner width": (network(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(9, 2)), vectors(1, 4, 4), classes(2), ENTROPY,
                    "write nn.Linear(8, 2), or let example() and load() return other inputs than float32 (n, 1, 4, 4)"),
    "channels": (network(nn.Conv2d(3, 2, 3)), vectors(1, 4, 4), classes(2), ENTROPY, "write nn.Conv2d(1, 2, …), or"),
    "flat": (network(nn.Conv2d(1, 2, 3)), vectors(16), classes(2), ENTROPY, "let it get (n, channels, height, width)"),
    "features": (network(nn.GRU(3, 2, batch_first=True)), vectors(5, 4), classes(2), ENTROPY, "write nn.GRU(4, …), or"),
    "groups": (network(nn.GroupNorm(2, 4), nn.Flatten()), vectors(6, 2), classes(2), ENTROPY, "nn.GroupNorm(2, 6)"),
    "norm": (network(nn.LayerNorm(3)), vectors(4), classes(2), ENTROPY, "write nn.LayerNorm(4), or let"),
    "vocabulary": (network(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(8, 2)), NUMBERS,
                   classes(2), ENTROPY, "(Embedding) takes 3 different numbers, but gets 7,"),
    "float labels": (network(nn.Linear(4, 2)), vectors(4), classes(2).float(), ENTROPY, "return targets.long() from"),
    "a column of labels": (network(nn.Linear(4, 2)), vectors(4), classes(2).float()[:, None], ENTROPY,
                           "return targets.long().squeeze(1) from"),
    "no column": (network(nn.Linear(4, 1)), vectors(4), classes(2).float(), LOGITS, "return targets.unsqueeze(1) from"),
    "whole targets": (network(nn.Linear(4, 1)), vectors(4), classes(2), LOGITS,
                      "as its model and its example() make them; return targets.float().unsqueeze(1) from"),
    "probabilities": (network(nn.Linear(4, 1)), 9 * vectors(4), classes(2).float()[:, None],
                      functional.binary_cross_entropy, "write functional.binary_cross_entropy_with_logits(outputs, t"),
    "all pairs": (network(nn.Linear(4, 1)), vectors(4), classes(3), lambda one, other: ((one - other) ** 2).mean(),
                  "of which torch makes all pairs unless the loss gives both one shape, for example by"),
    "too few outputs": (network(nn.Linear(4, 2)), vectors(4), classes(3), ENTROPY,
                        "classes up to 2, but its model returns 2 numbers for a record; give the model 3 outputs"),
    "one output": (network(nn.Linear(4, 1)), vectors(4), classes(2), ENTROPY,
                   "give the model 2 outputs in model(), or write functional.binary_cross_entropy_with_logits("),
    "other classes": (network(nn.Linear(4, 3)), vectors(4), functional.one_hot(classes(4)).float(), ENTROPY,
                      "give the model 4 outputs in model()"),
    "not averaged": (network(nn.Linear(4, 2)), vectors(4), classes(2),
                     lambda outputs, targets: ENTROPY(outputs, targets, reduction="none"), "such as loss.mean()"),
    "targets in doubles": (network(nn.Linear(4, 2)), vectors(4), vectors(2).double(), functional.mse_loss,
                           "its loss returns float64 (); return targets.float() from example() and load()"),
    "weights in doubles": (network(nn.Linear(4, 2)), vectors(4), vectors(2),
                           lambda one, other: ((one - other) ** 2 * torch.ones(2).double()).mean(),
                           "return a float32 scalar: the mean of one term per record, such as loss.float()"),
    "masks with a channel": (network(nn.Conv2d(1, 3, 1)), vectors(1, 2, 2), vectors(1, 2, 2).round(), ENTROPY,
                             "return targets.long().squeeze(1) from example() and load() instead"),
    "masks without a channel": (network(nn.Conv2d(1, 1, 1)), vectors(1, 2, 2), vectors(2, 2).round(), LOGITS,
                                "return targets.unsqueeze(1) from example() and load() instead"),
    "words first": (network(nn.Embedding(9, 9)), NUMBERS, NUMBERS, ENTROPY,
                    "return outputs.movedim(-1, 1), with the classes in dimension 1, from the model instead"),
    "too few channels": (network(nn.Conv2d(1, 2, 1)), vectors(1, 2, 2), NUMBERS.reshape(8, 2, 2), ENTROPY,
                         "classes up to 6, but its model returns 2 numbers for each; give the model 7 outputs"),
    "minus one": (network(nn.Linear(4, 2)), vectors(4), classes(2) * 2 - 1, ENTROPY,
                  "classes from -1 on; number them from 0 in example() and load()"),
    "from one": (network(nn.Linear(4, 2)), vectors(4), classes(2) + 1, ENTROPY,
                 "give the model 3 outputs in model(), or number the classes from 0 in example() and load()"),
    "no targets": (network(nn.Linear(4, 2)), vectors(4), torch.zeros(8), lambda one, _: one.square().mean(),
                   "if loss() needs no targets, return torch.arange(n)"),
    "a tuple": (network(nn.GRU(4, 2, batch_first=True)), vectors(5, 4), classes(2), ENTROPY,
                "returns a builtins.tuple; return one tensor with one row per record, for example output"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "inputs", "targets", "loss", "message"), CASES.values(), ids=CASES)
def test_a_wrong_example_model_or_loss_is_refused_with_what_to_write(
    model: Callable[[], nn.Module],
    inputs: Any,  # noqa: ANN401 - one tensor, or several
    targets: Tensor,
    loss: Loss,
    message: str,
) -> None:
    before = torch.get_rng_state()
    said = complaint(Toy(model, loss=loss, example=lambda: cast("Any", (inputs, targets))))
    assert message in said
    assert "RuntimeError" not in said
    assert torch.equal(before, torch.get_rng_state())
