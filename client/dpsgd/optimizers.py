"""Make the torch optimizer that a run names.

`CipherOptimizer` wraps it, so it sees only gradients that are clipped and have their noise. Momentum, moments and
weight decay follow from those and from the model, which is public: they are post-processing, and cost no ε. The
optimizer is made anew each round, so nothing of it is kept at the site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from privacy.run.optimizer import Sgd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from privacy.run.optimizer import Optimizer


def make_optimizer(settings: Optimizer, parameters: Sequence[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Return a new optimizer for these parameters."""
    if isinstance(settings, Sgd):
        return torch.optim.SGD(
            parameters,
            lr=learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=learning_rate,
        betas=(settings.beta_1, settings.beta_2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of the next steps."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
