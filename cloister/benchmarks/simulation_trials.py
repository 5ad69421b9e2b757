"""What every engine of `cloister bench simulation` trains: digits at sites, two models, one epoch a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from simulations.tasks.digits import CLASSES, LARGEST, PIXELS, Digits, digits

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH, RATE, NORM, SIGMA = 8, 0.5, 1.0, 1.0
_TEST, _SEED = 0.2, 0

Site = tuple[Tensor, Tensor]


class Hidden(Digits):
    """Digits by a network with 128 hidden units: 9,610 parameters."""

    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 64)` to logits `(n, 10)`."""
        return nn.Sequential(nn.Linear(PIXELS, 128), nn.ReLU(), nn.Linear(128, CLASSES))


TASKS = {"softmax": Digits, "mlp": Hidden}


def dealt(sites: int) -> tuple[list[Site], Site]:
    """Return each site's digits, and those to test on; with more sites than digits, digits are at several sites."""
    pixels, labels = digits()
    draw = np.random.default_rng(_SEED)
    order = draw.permutation(len(labels))
    tested = round(_TEST * len(order))
    training = order[tested:]
    if sites > len(training):
        training = np.concatenate([draw.permutation(training) for _ in range(-(-sites // len(training)))])
    inputs, targets = torch.from_numpy(pixels / LARGEST).float(), torch.from_numpy(labels).long()
    parts = np.array_split(draw.permutation(training), sites)
    return [(inputs[part], targets[part]) for part in parts], (inputs[order[:tested]], targets[order[:tested]])


def accuracy(module: nn.Module, test: Site) -> float:
    """Return the share of test digits that a model classifies correctly."""
    with torch.no_grad():
        return float((module(test[0]).argmax(1) == test[1]).float().mean())


def train_part(module: nn.Module, part: Site, *, private: bool) -> None:
    """Train a model for one epoch on a site's records, in batches of 8."""
    step = _private_step(module) if private else _plain_step(module)
    for some in torch.randperm(len(part[1])).split(BATCH):
        step(part[0][some], part[1][some])


def _plain_step(module: nn.Module) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()

    return step


def _private_step(module: nn.Module) -> Callable[[Tensor, Tensor], None]:
    def loss(parameters: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(module, parameters, (inputs[None],)), target[None])

    of_records = vmap(grad(loss), in_dims=(None, 0, 0))

    def step(inputs: Tensor, targets: Tensor) -> None:
        parameters = dict(module.named_parameters())
        gradients = of_records({name: value.detach() for name, value in parameters.items()}, inputs, targets)
        norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0).sqrt()
        factors = (NORM / (norms + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for name, parameter in parameters.items():
                total = torch.einsum("n,n...->...", factors, gradients[name])
                total += torch.randn_like(total) * SIGMA * NORM
                parameter.sub_(total / len(targets), alpha=RATE)

    return step
