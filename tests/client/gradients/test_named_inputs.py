"""Inputs that are a dict or a tuple of tensors: the guard, every mode, and training treat them as one record each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.data.inputs import call, singles
from client.data.site_records import InMemory
from client.dpsgd.training_steps import train
from client.gradients.choice import choose, make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from client.settings import Computing
from client.task.guard import check_task
from client.task.probe import make_model
from client.task.proving import prove
from privacy.errors import TaskError
from privacy.noise.randomness import Randomness
from tests.client.named_inputs import Encoding, Named, Reading, Towers, pairs, texts
from tests.trainings import signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.data.inputs import Batch
    from client.settings import Gradients

SOUND: dict[str, tuple[Named, Gradients]] = {
    "dict": (Named(), "bookkeeping"),
    "dict, torch's encoder": (Named(Encoding), "vmap"),
    "tuple": (Named(Towers, pairs), "bookkeeping"),
}
COUNT = 9


def drawn(task: Named) -> tuple[nn.Module, Batch]:
    """The untrained model and some records; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return make_model(task, 1), task._records(COUNT)


@pytest.mark.parametrize(("task", "mode"), SOUND.values(), ids=SOUND)
def test_the_guard_accepts_named_inputs_and_the_fast_mode_is_chosen(task: Named, mode: Gradients) -> None:
    example = check_task(task, "package:Class")
    model, records = drawn(task)
    assert choose(task, model, (example.inputs, example.targets), Computing()).gradients == mode
    prove(task, "package:Class", InMemory(*records), torch.device("cpu"), Computing())


@pytest.mark.parametrize("mode", ["bookkeeping", "vmap", "hooks", "functorch", "autograd"])
@pytest.mark.parametrize("task", [SOUND["dict"][0], SOUND["tuple"][0]], ids=["dict", "tuple"])
def test_the_clipped_sum_of_every_mode_is_that_of_single_records(task: Named, mode: Gradients) -> None:
    model, (inputs, targets) = drawn(task)
    vectors, norms = [], []
    for one, target in zip(singles(inputs), targets.split(1), strict=True):
        gradients = torch.autograd.grad(task.loss(call(model, one), target), trainable(model))
        vectors.append(torch.cat([gradient.flatten() for gradient in gradients]))
        norms.append(float(vectors[-1].norm()))
    bound = sorted(norms)[COUNT // 2]
    expected = torch.stack(
        [gradient * min(1.0, bound / norm) for gradient, norm in zip(vectors, norms, strict=True)]
    ).sum(0)

    wrapped = make_mode(mode, model, RecordLoss(task), bound, torch.float32)
    optimizer = CipherOptimizer(
        torch.optim.SGD(trainable(model), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
        randomness=Randomness.seeded(0),
    )
    with quiet():
        optimizer.take(wrapped, InMemory(inputs, targets), torch.arange(COUNT), 4)
    wrapped.to_standard_module()
    optimizer.close()
    summed = torch.cat([parameter.grad.flatten() for parameter in trainable(model) if parameter.grad is not None])
    assert torch.allclose(summed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("task", "mode"), SOUND.values(), ids=SOUND)
def test_a_private_round_moves_every_trained_parameter(task: Named, mode: Gradients) -> None:
    model, records = drawn(task)
    before = [parameter.detach().clone() for parameter in trainable(model)]
    train(task, model, records, COUNT, signed(rate=0.5, steps=3, noise=1.0), Randomness.seeded(1),
          computing=Computing(gradients=mode, physical_batch=2))  # fmt: skip
    assert not any(torch.equal(one, other) for one, other in zip(before, trainable(model), strict=True))


class ToTheLongest(Reading):
    """Divides by the longest text of the batch."""

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return super().forward(input_ids, attention_mask) / attention_mask.sum(1).max()


class Pooled(Towers):
    """Subtracts the batch's mean from one of the two tables."""

    @override
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return super().forward(left, right - right.mean(0))


@pytest.mark.parametrize(("model", "records"), [(ToTheLongest, texts), (Pooled, pairs)])
def test_records_that_interact_through_any_one_of_the_tensors_are_refused(
    model: type[nn.Module], records: Callable[[int], tuple[dict[str, Tensor] | tuple[Tensor, ...], Tensor]]
) -> None:
    with pytest.raises(TaskError, match="mixes the records of a batch"):
        check_task(Named(model, records), "package:Class")


def test_an_example_of_another_form_is_named() -> None:
    class Short(Named):
        @override
        def example(self) -> tuple[dict[str, Tensor], Tensor]:
            inputs, targets = texts(7)
            return {**inputs, "attention_mask": inputs["attention_mask"][:5]}, targets

    with pytest.raises(TaskError, match=r"its example has input `attention_mask` int64 \(n, 6\)"):
        check_task(Short(), "package:Class")
