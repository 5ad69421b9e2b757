"""What holds in every mode, whatever the task does: nobody adds more than C, and noise is added once a step."""

import logging
from math import nan

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.dpsgd.training_steps import train
from client.gradients import noisy_optimizer
from client.gradients.mode import trainable
from client.settings import Gradients
from privacy.noise.randomness import Randomness
from tests.client.specimens import (
    DEVICES,
    MODES,
    RECORDS,
    SPECIMENS,
    Scores,
    clipped_sum,
    computing,
    make_specimen,
    manifest,
    one_by_one,
)

everywhere = pytest.mark.parametrize("mode", MODES)
on_every_device = pytest.mark.parametrize("device", DEVICES)
C = 0.05  # so small that every record here is clipped


def vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().cpu() for parameter in trainable(model)])


class Weighted(Scores):
    """The mean over a batch is over its weights: one rare class outweighs all others."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, weight=outputs.new_tensor([1.0, 1e4]), ignore_index=7)


class Decaying(Scores):
    """Its loss has a term on parameters, which has nothing to do with records."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[Tensor] = []

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, targets) + 1e3 * sum(parameter.square().sum() for parameter in self.parameters)


class Branching(Scores):
    """Its loss looks at values, which cannot be mapped over records."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        scale = 2.0 if float(outputs.detach().sum()) > 0 else 1.0
        return scale * super().loss(outputs, targets)


@everywhere
def test_no_record_moves_the_sum_by_more_than_its_bound_whatever_its_weight(mode: Gradients) -> None:
    model, (inputs, targets) = make_specimen("mlp")
    task = Weighted()
    whole = clipped_sum(mode, task, model, (inputs, targets), C)
    for left_out in range(RECORDS):
        kept = torch.arange(RECORDS) != left_out
        others = clipped_sum(mode, task, model, (inputs[kept], targets[kept]), C)
        assert float((whole - others).norm()) <= C * (1 + 1e-5)


@everywhere
def test_a_term_on_parameters_has_no_effect(mode: Gradients) -> None:
    model, records = make_specimen("mlp")
    task = Decaying()
    task.parameters = list(model.parameters())
    with_term = clipped_sum(mode, task, model, records, C)
    torch.testing.assert_close(with_term, clipped_sum(mode, Scores(), model, records, C))
    assert float(with_term.norm()) <= RECORDS * C


@everywhere
def test_a_loss_that_branches_on_values_is_computed_record_by_record(mode: Gradients) -> None:
    model, records = make_specimen("mlp")
    expected = one_by_one(Branching(), model, records)
    total = clipped_sum(mode, Branching(), model, records, 1e3)
    torch.testing.assert_close(total, expected.sum(0), rtol=1e-5, atol=1e-6)


@on_every_device
@everywhere
@pytest.mark.parametrize("bad", [nan, float("inf"), 1e30])
@pytest.mark.parametrize("name", ["mlp", "two dimensions"])
def test_a_record_without_a_finite_gradient_adds_nothing(mode: Gradients, bad: float, name: str, device: str) -> None:
    model, (inputs, targets) = make_specimen(name, device)
    kept = torch.arange(RECORDS, device=device) != 2
    expected = clipped_sum(mode, Scores(), model, (inputs[kept], targets[kept]), C)
    inputs[2] = bad
    for physical_batch in (RECORDS, 1):
        total = clipped_sum(mode, Scores(), model, (inputs, targets), C, physical_batch)
        assert bool(total.isfinite().all())
        if bad != 1e30:  # saturated, its gradient may be finite, or none at all
            torch.testing.assert_close(total, expected)
        assert float((total - expected).norm()) <= C * (1 + 1e-5)


@everywhere
def test_the_log_warns_once_a_round_of_records_without_a_finite_gradient(
    mode: Gradients, caplog: pytest.LogCaptureFixture
) -> None:
    model, (inputs, targets) = make_specimen("mlp")
    inputs[4] = nan
    with caplog.at_level(logging.WARNING, "cloister.agent"):
        train(
            Scores(),
            model,
            (inputs, targets),
            RECORDS,
            manifest(3, 1.0, 0.0),
            Randomness.fresh(),
            computing=computing(mode),
        )
    assert [record.getMessage()[:7] for record in caplog.records] == ["3 times"]
    assert bool(vector(model).isfinite().all())


@everywhere
@on_every_device
def test_batches_in_parts_give_the_same_model_and_noise_is_added_once_a_step(mode: Gradients, device: str) -> None:
    models = []
    for parts in (RECORDS, 2, 1):
        model, records = make_specimen("mlp", device)
        how, run = computing(mode, parts), manifest(4, 0.6, 1.0)
        train(Scores(), model, records, RECORDS, run, Randomness.seeded(5), computing=how)
        models.append(vector(model))
    for other in models[1:]:
        torch.testing.assert_close(other, models[0])


@on_every_device
@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, specimen in SPECIMENS.items() for mode in MODES if mode in specimen.modes]
)
def test_an_empty_batch_counts_and_gets_its_noise_with_every_layer(name: str, mode: Gradients, device: str) -> None:
    model, records = make_specimen(name, device)
    before, randomness, steps = vector(model), Randomness.seeded(6), 2
    run = manifest(steps, 1e-9, 1.5)
    train(Scores(name), model, records, RECORDS, run, randomness, computing=computing(mode))
    stream, noise, expected = Randomness.seeded(6), torch.empty(before.numel()), torch.zeros_like(before)
    for _ in range(steps):
        assert not (stream.uniform(RECORDS) < 1e-9).any()
        stream.fill_gaussian(noise.numpy())
        expected -= 0.5 * 1.5 * 0.5 * noise.to(expected)  # rate, σ, C; the size is one
    torch.testing.assert_close(vector(model), before + expected, rtol=1e-5, atol=1e-5)


def test_a_site_without_records_sends_noise() -> None:
    model, (inputs, targets) = make_specimen("mlp")
    before = vector(model)
    train(Scores(), model, (inputs[:0], targets[:0]), RECORDS, manifest(2, 1.0, 1.0), Randomness.fresh())
    assert (vector(model) != before).all()


def test_sums_are_divided_by_the_declared_size_alone() -> None:
    moved = []
    for size in (10, 20):
        model, records = make_specimen("mlp")
        before = vector(model)
        train(Scores(), model, records, size, manifest(1, 1.0, 0.0), Randomness.seeded(1))
        moved.append(vector(model) - before)
    torch.testing.assert_close(moved[0], 2 * moved[1], rtol=1e-3, atol=1e-6)


def test_the_noise_of_a_step_is_drawn_beside_it_in_the_order_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    for beside in (True, False):
        monkeypatch.setattr(noisy_optimizer.CipherOptimizer, "_draws_ahead", beside)
        model, records = make_specimen("twice")
        train(Scores("twice"), model, records, RECORDS, manifest(5, 0.5, 1.0), Randomness.seeded(8))
        models.append(vector(model))
    assert torch.equal(*models)
