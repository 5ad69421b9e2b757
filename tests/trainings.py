"""Single rounds of training, of any task on any records, as a site does them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.utils import parameters_to_vector

from client.dpsgd import train
from client.trial import make_model
from privacy.manifest import Privacy, Training
from privacy.randomness import Randomness
from tests.privacy.consortium import make_manifest, run_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from client.task import Task


def summed(
    task: Task,
    records: tuple[Tensor, Tensor],
    randomness: Randomness | None = None,
    *,
    rate: float = 1.0,
    steps: int = 1,
    noise: float = 0.0,
    norm: float = 1.0,
) -> NDArray[np.float64]:
    """Train for a round, and return the noisy sum of clipped gradients over its steps: `(parameters,)`.

    The learning rate is such that the model hardly moves: every step sees the same one.
    """
    size, learning_rate = max(1, len(records[0])), 1e-3
    asked = replace(
        run_settings(privacy=Privacy(max_grad_norm=norm, noise_multiplier=noise)),
        training=Training(steps_per_round=steps, sample_rate=rate, learning_rate=learning_rate),
    )
    module = make_model(task, 0).double()
    before = parameters_to_vector(module.parameters()).detach().clone()
    inputs, targets = (part.double() if part.is_floating_point() else part for part in records)
    train(task, module, (inputs, targets), size, make_manifest(asked)[0], randomness or Randomness.fresh())
    moved = before - parameters_to_vector(module.parameters()).detach()
    found: NDArray[np.float64] = (moved * max(1.0, rate * size) / learning_rate).numpy()
    torch.testing.assert_close(moved, moved)
    return found
