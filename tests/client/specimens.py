"""Models of every kind that gradients are computed for, with which modes can; and what they should compute."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.site_records import InMemory
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from client.settings import Computing, Gradients
from client.task.task import Task
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from privacy.run.tables import Clipping
from tests.client.models import (
    WORDS,
    Aside,
    Attention,
    Bare,
    Borrowed,
    Constants,
    Mean,
    Recurrent,
    Siamese,
    Sorted,
    Thrice,
    Tied,
    Twice,
    frozen,
    in_place,
    one_dimension,
    padded,
    two_dimensions,
)

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]
MODES: tuple[Gradients, ...] = ("bookkeeping", "vmap", "hooks", "functorch", "autograd")
OURS = ("bookkeeping", "vmap", "autograd")
RECORDS = 6


def images(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(RECORDS, *shape)


def tokens(length: int = 5) -> Callable[[], Tensor]:
    return lambda: torch.randint(WORDS, (RECORDS, length))


class Scores(Task):
    """Classification into two, of anything."""

    def __init__(self, name: str = "mlp") -> None:
        self._name = name

    @override
    def model(self) -> nn.Module:
        return SPECIMENS[self._name].model()

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return SPECIMENS[self._name].inputs(), torch.arange(RECORDS) % 2

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


@dataclass(frozen=True)
class Specimen:
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    modes: tuple[str, ...] = field(default=MODES)


SPECIMENS = {
    "mlp": Specimen(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)), images(3)),
    "in place": Specimen(in_place, images(3), OURS),
    "rows of rows": Specimen(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Mean(), nn.Linear(4, 2)),
        images(2, 2, 3),
    ),
    "two dimensions": Specimen(two_dimensions, images(2, 9, 9)),
    "one dimension": Specimen(one_dimension, images(2, 9)),
    "around": Specimen(
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(32, 2)),
        images(1, 4, 4),
        (*OURS, "functorch"),  # Opacus's samplers know no such padding
    ),
    "padded words": Specimen(padded, tokens()),
    "norms": Specimen(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.RMSNorm(4), Mean(), nn.Linear(4, 2)),
        images(5, 3),
    ),
    "norm of two dimensions": Specimen(
        lambda: nn.Sequential(nn.LayerNorm([2, 3], bias=False), nn.Flatten(), nn.Linear(6, 2)),
        images(2, 3),
        (*OURS, "functorch"),
    ),
    "twice": Specimen(Twice, tokens(), (*OURS, "hooks", "functorch")),
    "tied": Specimen(Tied, tokens(), ("vmap", "hooks", "functorch", "autograd")),
    "borrowed": Specimen(Borrowed, tokens(), ("vmap", "autograd")),
    "bare": Specimen(Bare, images(3), ("vmap", "functorch", "hooks", "autograd")),
    "thrice": Specimen(Thrice, images(3), ("vmap", "functorch", "hooks", "autograd")),
    "siamese": Specimen(Siamese, images(3)),
    "sorted": Specimen(Sorted, images(3), ("vmap", "autograd")),
    "aside": Specimen(Aside, images(3), OURS),  # Opacus takes one call's input for the other's
    "recurrent": Specimen(Recurrent, tokens()),
    "frozen": Specimen(frozen, images(3)),
    "constants": Specimen(Constants, images(3), ("vmap", "autograd")),  # Opacus takes no buffers beside parameters
    "attention": Specimen(Attention, tokens(), ("vmap", "autograd")),
}


def make_specimen(name: str, device: str = "cpu") -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a specimen and its records; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, inputs = SPECIMENS[name].model(), SPECIMENS[name].inputs()
    return model.to(device), (inputs.to(device), torch.arange(RECORDS, device=device) % 2)


def one_by_one(task: Task, model: nn.Module, records: tuple[Tensor, Tensor]) -> Tensor:
    """Return every record's gradient as plain autograd computes it, `(n, parameters)`."""
    vectors, parameters = [], trainable(model)
    for one, target in zip(*records, strict=True):
        loss = task.loss(model(one[None]), target[None])
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        vectors.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(vectors)


def clipped_sum(
    gradients: Gradients,
    task: Task,
    model: nn.Module,
    records: tuple[Tensor, Tensor],
    bound: float,
    physical_batch: int = RECORDS,
    precision: torch.dtype = torch.float32,
    clipping: Clipping = "flat",
) -> Tensor:
    """Return what a mode and the optimizer make of a batch, without noise: `(parameters,)`."""
    mode = make_mode(gradients, model, RecordLoss(task), bound, precision, clipping)
    optimizer = CipherOptimizer(
        torch.optim.SGD(trainable(model), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
        randomness=Randomness.seeded(0),
    )
    with quiet():
        optimizer.take(mode, InMemory(*records), torch.arange(len(records[0])), physical_batch)
    mode.to_standard_module()
    optimizer.close()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def manifest(steps: int, rate: float, noise: float, bound: float = 0.5) -> Manifest:
    """Return a run that trains."""
    settings = RunSettings(
        name="test",
        task="tests.studies:Tiny",
        rounds=1,
        training=Training(steps_per_round=steps, sample_rate=rate, learning_rate=0.5),
        privacy=Privacy(max_grad_norm=bound, noise_multiplier=noise),
        encryption=Encryption(update_bound=1.0, collusion_resistant=False),
        cohort=Cohort(dict.fromkeys(("north", "south", "east"), RECORDS)),
    )
    return Manifest(settings, noise, roster_version=1, nonce="0" * 16, created="", expires=0.0)


def computing(gradients: Gradients, physical_batch: int = 0) -> Computing:
    return Computing(gradients=gradients, physical_batch=physical_batch)
