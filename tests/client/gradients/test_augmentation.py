"""A record's gradient is the mean over its augmented copies, clipped once, in every mode."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn
from typing_extensions import override

from client.data.site_records import InMemory
from client.dpsgd.training_steps import train
from client.gradients import record_gradients
from client.gradients.augmentation import Augmentation
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from client.settings import Gradients
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.tables import Clipping
from tests.client.models import WORDS
from tests.client.specimens import (
    DEVICES,
    MODES,
    RECORDS,
    SPECIMENS,
    Scores,
    computing,
    make_specimen,
    manifest,
    one_by_one,
)

NAMES = ("mlp", "rows of rows", "two dimensions", "one dimension", "padded words", "norms", "twice", "tied", "bare",
         "recurrent", "frozen")  # fmt: skip
CASES = [(name, mode) for name in NAMES for mode in MODES if mode in SPECIMENS[name].modes]
COPIES = 3


class Varied(Scores):
    """Adds noise to numbers, and replaces some words."""

    seen: list[Tensor]

    @override
    def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
        if inputs.is_floating_point():
            noisy = inputs + torch.randn(inputs.shape, generator=generator, device=inputs.device)
        else:
            others = torch.randint(WORDS, inputs.shape, generator=generator, device=inputs.device)
            some = torch.rand(inputs.shape, generator=generator, device=inputs.device) < 0.3
            noisy = torch.where(some, others, inputs)
        self.seen = [*getattr(self, "seen", []), noisy]
        return noisy


def clipped_sum(
    mode: Gradients,
    task: Scores,
    model: nn.Module,
    records: tuple[Tensor, Tensor],
    bound: float,
    copies: int = COPIES,
    physical_batch: int = RECORDS * COPIES,
    clipping: Clipping = "flat",
) -> Tensor:
    """Return what a mode makes of augmented records, without noise: `(parameters,)`."""
    made_mode = make_mode(mode, model, RecordLoss(task), bound, torch.float32, clipping)
    made_mode.augmentation = Augmentation(task, copies)
    optimizer = CipherOptimizer(
        torch.optim.SGD(trainable(model), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
        randomness=Randomness.seeded(0),
    )
    with quiet():
        optimizer.take(made_mode, InMemory(*records), torch.arange(len(records[0])), physical_batch)
    made_mode.to_standard_module()
    optimizer.close()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def by_hand(task: Varied, model: nn.Module, targets: Tensor, bound: float, copies: int = COPIES) -> Tensor:
    """Return the same from the copies that a task made: plain gradients of each, their means, clipped, and the sum."""
    rows = torch.cat(task.seen)
    gradients = one_by_one(task, model, (rows, targets.repeat_interleave(copies)))
    means = gradients.unflatten(0, (-1, copies)).mean(1)
    total: Tensor = (bound / (means.norm(dim=1) + 1e-6)).clamp(max=1.0) @ means
    return total


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "mode", "physical_batch"),
    [(*case, 4 * COPIES) for case in CASES] + [("mlp", mode, size) for mode in MODES for size in (RECORDS * COPIES, 1)],
)
def test_a_mode_gives_the_sum_of_clipped_means_of_plain_gradients(
    name: str, mode: Gradients, physical_batch: int, device: str
) -> None:
    model, records = make_specimen(name, device)
    bound, task = float(one_by_one(Scores(), model, records).norm(dim=1).median()), Varied(name)
    total = clipped_sum(mode, task, model, records, bound, physical_batch=physical_batch)
    parts = -(-RECORDS // max(1, physical_batch // COPIES))
    assert len(task.seen) == parts  # all copies of a part in one pass
    expected = by_hand(task, model, records[1], bound)
    assert float((total - expected).norm() / expected.norm()) < 1e-5


def test_gradients_too_large_to_keep_are_written_out_some_records_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_gradients, "KEPT", 100)
    for name in ("mlp", "two dimensions"):
        (model, records), task = make_specimen(name), Varied(name)
        total = clipped_sum("bookkeeping", task, model, records, 0.1)
        torch.testing.assert_close(total, by_hand(task, model, records[1], 0.1), rtol=1e-4, atol=1e-6)


def test_one_copy_is_an_augmented_record() -> None:
    for mode in MODES:
        (model, records), task = make_specimen("mlp"), Varied()
        total = clipped_sum(mode, task, model, records, 0.1, copies=1)
        torch.testing.assert_close(total, by_hand(task, model, records[1], 0.1, copies=1), rtol=1e-4, atol=1e-6)


class Repeatable(Varied):
    """Draws for each copy the same, whatever else is in the batch, so that batches can be compared."""

    @override
    def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
        rows = torch.arange(len(inputs)) % COPIES
        drawn = torch.randn((COPIES, *inputs.shape[1:]), generator=Generator().manual_seed(5))
        return inputs + drawn[rows] if inputs.is_floating_point() else (inputs + rows.unsqueeze(1)) % WORDS


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    clipping=st.sampled_from(["flat", "per_layer"]),
    name=st.sampled_from(["mlp", "two dimensions", "padded words"]),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30]), min_size=RECORDS, max_size=RECORDS),
    left_out=st.integers(0, RECORDS - 1),
    bound=st.sampled_from([1e-2, 1.0, 30.0]),
)
def test_no_record_moves_the_sum_by_more_than_c_with_all_its_copies(
    mode: Gradients, clipping: Clipping, name: str, scales: list[float], left_out: int, bound: float
) -> None:
    (model, (inputs, targets)), task = make_specimen(name), Repeatable(name)
    if inputs.is_floating_point():
        inputs = inputs * torch.tensor(scales).view(-1, *[1] * (inputs.dim() - 1))
    kept = torch.arange(RECORDS) != left_out
    whole, others = (
        clipped_sum(mode, task, model, records, bound, clipping=clipping).double()
        for records in ((inputs, targets), (inputs[kept], targets[kept]))
    )
    assert float((whole - others).norm()) <= bound * (1 + 1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_record_with_a_copy_whose_gradient_is_not_finite_adds_nothing(mode: Gradients) -> None:
    class Spoiling(Repeatable):
        @override
        def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
            augmented = super().augment(inputs, generator)
            augmented[::COPIES][inputs[::COPIES, 0] > 100] = torch.inf
            return augmented

    model, (inputs, targets) = make_specimen("mlp")
    kept = torch.arange(RECORDS) != 2
    expected = clipped_sum(mode, Spoiling(), model, (inputs[kept], targets[kept]), 0.1)
    inputs[2, 0] = 101.0
    total = clipped_sum(mode, Spoiling(), model, (inputs, targets), 0.1)
    torch.testing.assert_close(total, expected)


# --- In a run -------------------------------------------------------------------------------------------------------


def asking(copies: int, *, steps: int = 1, rate: float = 1.0, noise: float = 0.0) -> Manifest:
    run = manifest(steps, rate, noise, 0.1)
    assert run.settings.training is not None
    training = replace(run.settings.training, augmentation_multiplicity=copies)
    return replace(run, settings=replace(run.settings, training=training))


def trained(task: Scores, run: Manifest, mode: Gradients = "bookkeeping", seed: int = 5) -> Tensor:
    """Train a round, and return how far the model moved, in sums of gradients."""
    model, records = make_specimen("mlp")
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    train(task, model, records, RECORDS, run, Randomness.seeded(seed), computing=computing(mode))
    return (before - nn.utils.parameters_to_vector(model.parameters()).detach()) / 0.5 * RECORDS


@pytest.mark.parametrize("mode", MODES)
def test_a_round_trains_on_the_copies_that_the_run_asks_for(mode: Gradients) -> None:
    parameters = trained(Repeatable(), asking(COPIES), mode)
    (model, records), task = make_specimen("mlp"), Repeatable()
    task.seen = [task.augment(records[0].repeat_interleave(COPIES, 0), Generator())]
    torch.testing.assert_close(parameters, by_hand(task, model, records[1], 0.1), rtol=1e-3, atol=1e-5)
    plain = trained(Repeatable(), asking(0), mode)
    torch.testing.assert_close(plain, trained(Scores(), asking(0), mode))
    assert not torch.allclose(plain, parameters, rtol=1e-2)


def test_draws_are_new_in_every_step_and_round_and_leave_sampling_and_noise_as_they_were() -> None:
    noise = list[Tensor]()
    for _ in range(2):
        task = Varied()
        trained(task, asking(COPIES, steps=3), seed=5)
        steps = task.seen[0], task.seen[1], task.seen[-1]  # between them, the check of the last batch
        noise += [step - make_specimen("mlp")[1][0].repeat_interleave(COPIES, 0) for step in steps]
    rows = torch.cat(noise)
    assert len(rows.unique(dim=0)) == len(rows)  # no two copies alike

    class Still(Scores):
        @override
        def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
            torch.rand(len(inputs), generator=generator)
            return inputs

    with_draws = trained(Still(), asking(COPIES, steps=4, rate=0.5, noise=1.0))
    without = trained(Scores(), asking(0, steps=4, rate=0.5, noise=1.0))
    torch.testing.assert_close(with_draws, without, rtol=1e-4, atol=1e-4)
