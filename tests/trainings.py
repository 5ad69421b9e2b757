"""Single rounds of training, of any task on any records, as a site does them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch.nn.utils import parameters_to_vector

from client.dpsgd.training_steps import train
from client.task.probe import make_model
from privacy.noise.randomness import Randomness
from privacy.run.settings import Privacy, Training
from tests.privacy.consortium import make_manifest, run_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from client.task.task import Task
    from privacy.run.manifest import Manifest


def signed(*, rate: float = 1.0, steps: int = 1, noise: float = 0.0, norm: float = 1.0) -> Manifest:
    """Sign a run with these parameters and a learning rate of 1."""
    settings = run_settings(privacy=Privacy(max_grad_norm=norm, noise_multiplier=noise))
    return make_manifest(
        replace(settings, training=Training(steps_per_round=steps, sample_rate=rate, learning_rate=1.0))
    )[0]


def summed(
    task: Task, records: tuple[Tensor, Tensor], manifest: Manifest, randomness: Randomness | None = None
) -> NDArray[np.float64]:
    """Train for a round, and return the sum over its steps of clipped gradients and noise: `(parameters,)`."""
    training, size = manifest.settings.training, len(records[0])
    assert training is not None
    module = make_model(task, 0)
    before = parameters_to_vector(module.parameters()).detach().double()
    train(task, module, records, size, manifest, randomness or Randomness.fresh())
    moved = before - parameters_to_vector(module.parameters()).detach().double()
    sum_: NDArray[np.float64] = (moved * max(1.0, training.sample_rate * size)).numpy()
    return sum_
