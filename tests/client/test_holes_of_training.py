"""What one record can do to an update is bounded by the clipping norm, whatever the record and the layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from privacy.noise.randomness import Randomness
from tests.probes import CLASSES, LENGTH, WIDTH, Toy, sequences, vectors, words
from tests.trainings import signed, summed


class HalfPrecision(nn.Linear):
    """Computes in 16 bits."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(inputs).float()


def reading() -> nn.Module:
    """A model of `words`, whose padding has a vector that is not trained."""
    return nn.Sequential(nn.Embedding(9, 5, padding_idx=0), nn.Flatten(), nn.Linear(5 * LENGTH, CLASSES))


def exact(task: Toy, records: tuple[Tensor, Tensor], norm: float) -> np.ndarray:
    """The sum of the records' gradients, each clipped, one by one and in double precision."""
    torch.manual_seed(0)
    module, total = task.model().double(), torch.zeros(())
    for row in range(len(records[0])):
        module.zero_grad()
        inputs = records[0][row : row + 1]
        task.loss(
            module(inputs.double() if inputs.is_floating_point() else inputs), records[1][row : row + 1]
        ).backward()
        slope = torch.cat([torch.zeros_like(parameter).view(-1) if parameter.grad is None else parameter.grad.view(-1)
                           for parameter in module.parameters()])  # fmt: skip
        total = total + slope * min(1.0, norm / float(slope.norm()))
    return np.asarray(total)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_rows_of_padding_do_not_count_as_gradients(norm: float) -> None:
    # Hooks give the padding's row a gradient that no step uses, and clip the others for it.
    torch.manual_seed(3)
    task, records = Toy(reading, example=words), words()
    np.testing.assert_allclose(summed(task, records, signed(norm=norm)), exact(task, records, norm), atol=1e-5)


def convolving() -> nn.Module:
    """A model of `sequences`."""
    return nn.Sequential(nn.Conv1d(LENGTH, 2, 1), nn.Flatten(), nn.Linear(2 * WIDTH, CLASSES))


@pytest.mark.parametrize(
    "task",
    [Toy(), Toy(reading, example=words), Toy(convolving, example=sequences)],
    ids=["linear", "embedding", "convolution"],
)
def test_an_empty_batch_is_noise_alone_whatever_the_layers(task: Toy) -> None:
    manifest = signed(rate=1e-12, steps=20, noise=1.0)
    total = np.concatenate([summed(task, task.example(), manifest) for _ in range(20)])
    assert total.std() == pytest.approx(np.sqrt(20), rel=0.2)


@pytest.mark.parametrize("loud", [3e38, 1e30, 1e20, 1e12])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero(loud: float) -> None:
    # Finite when read, but its square is not: one such record made the model no number.
    task = Toy(loss=lambda outputs, _: outputs.square().mean())
    inputs, targets = vectors()
    with_it = inputs.clone()
    with_it[3] = loud
    rest = torch.arange(len(inputs)) != 3
    total = summed(task, (with_it, targets), signed(norm=0.5))
    assert np.isfinite(total).all()
    assert np.linalg.norm(total - exact(task, (inputs[rest], targets[rest]), 0.5)) <= 0.5 * (1 + 1e-5)


def test_norms_of_gradients_in_half_precision_are_computed_in_full() -> None:
    # In 16 bits they are off by up to half a percent, and with them the sensitivity.
    task = Toy(lambda: HalfPrecision(WIDTH, CLASSES))
    torch.manual_seed(4)
    for row in torch.randn(30, WIDTH) * 100:
        total = summed(task, (row.unsqueeze(0), torch.zeros(1, dtype=torch.int64)), signed(norm=0.1))
        assert np.linalg.norm(total) <= 0.1 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_one_record_more_or_less_changes_a_step_by_the_clipping_norm_at_most(scale: float) -> None:
    torch.manual_seed(5)
    task, (inputs, targets) = Toy(), (torch.randn(9, WIDTH) * scale, torch.arange(9) % CLASSES)
    manifest = signed(norm=0.7)
    whole = summed(task, (inputs, targets), manifest, Randomness.seeded(1))
    for record in range(9):
        rest = torch.arange(9) != record
        less = summed(task, (inputs[rest], targets[rest]), manifest, Randomness.seeded(1))
        assert np.linalg.norm(whole - less) <= 0.7 * (1 + 1e-5)
