"""DP-SGD (Abadi et al., 2016) with Opacus: the only file that touches it.

What Opacus leaves to its caller, and what goes wrong if the caller does not look:

- Batches are Poisson samples: each record is in a step's batch with probability `sample_rate`, by itself. The
  accountant assumes exactly that; shuffled batches cost far more than it would say.
- A step whose batch is empty still adds noise and still counts. Skipping it would cost utility and, worse, tell that
  the batch was empty.
- Gradients are divided by sample_rate times the size that the site declared in public, never by a private count.
- Noise comes from a cipher, not from torch's generator.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch.nn.modules.batchnorm import _BatchNorm

from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from client.task import Task
    from privacy.manifest import Manifest
    from privacy.randomness import Randomness

_SUM, _SAMPLES = "summed_grad", "grad_sample"  # where Opacus keeps a parameter's clipped sum and per-record gradients


class _CipherNoise(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Opacus's optimizer with noise from our cipher, in double precision until it is added."""

    def __init__(self, *args: Any, randomness: Randomness, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        self._randomness = randomness

    def add_noise(self) -> None:
        """Set every gradient to the clipped sum plus N(0, (σC)²)."""
        scale = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            summed: Tensor = getattr(parameter, _SUM)
            if scale > 0:
                drawn = torch.from_numpy(self._randomness.gaussian(summed.numel()) * scale)
                summed = summed + drawn.to(device=summed.device, dtype=summed.dtype).view_as(summed)
            parameter.grad = summed.view_as(parameter)
            setattr(parameter, _SUM, None)


def check_model(model: nn.Module, task: str) -> None:
    """Refuse a model that DP-SGD cannot protect.

    Raises:
        TaskError: naming the layers.
    """
    problems = [str(problem).splitlines()[0] for problem in ModuleValidator.validate(model, strict=False)]
    # Opacus lets batch normalisation pass that has nothing to train; it mixes records all the same.
    mixing = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]
    problems += [f"{name} is batch normalisation" for name in mixing]
    if problems:
        listed = "; ".join(problems)
        msg = f"{task}: its model cannot be trained with differential privacy: {listed}"
        raise TaskError(msg)
    if any(not parameter.requires_grad for parameter in model.parameters()) or list(model.buffers()):
        msg = f"{task}: its model has frozen parameters or buffers, which are not shared; keep them outside the model"
        raise TaskError(msg)


def train(task: Task, model: nn.Module, records: tuple[Tensor, Tensor], size: int, manifest: Manifest,
          randomness: Randomness) -> None:  # fmt: skip
    """Train `model` in place for one round.

    Args:
        task: gives the loss.
        model: on the device to train on.
        records: inputs and targets `(n, ...)`, on the same device.
        size: how many training records the site declares in public, about n.
        manifest: steps, sampling rate, learning rate, clipping norm and σ.
        randomness: of sampling and noise; a new one every round.

    Raises:
        TaskError: if the model's layers mix records, or the run trains nothing.
    """
    inputs, targets = records
    training, norm = manifest.settings.training, manifest.settings.privacy.max_grad_norm
    if training is None or norm is None:
        msg = f"the run {manifest.settings.name} gathers statistics; it trains nothing"
        raise TaskError(msg)
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = _CipherNoise(
        torch.optim.SGD(wrapped.parameters(), lr=training.learning_rate),
        noise_multiplier=manifest.update_noise,
        max_grad_norm=norm,
        expected_batch_size=max(1.0, training.sample_rate * size),
        loss_reduction="mean",
        randomness=randomness,
    )
    try:
        with warnings.catch_warnings():
            # torch remarks that inputs need no gradient; records never do.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for _ in range(training.steps_per_round):
                chosen = torch.from_numpy(randomness.uniform(len(inputs)) < training.sample_rate).to(inputs.device)
                _step(task, wrapped, optimizer, inputs[chosen], targets[chosen])
    finally:
        wrapped.to_standard_module()


def _step(task: Task, wrapped: nn.Module, optimizer: DPOptimizer, inputs: Tensor, targets: Tensor) -> None:
    """Take one step on a batch that may be empty: its noise counts all the same.

    Raises:
        TaskError: if gradients are of anything but single records; clipping would bound something else.
    """
    optimizer.zero_grad(set_to_none=True)
    if len(inputs):
        task.loss(wrapped(inputs), targets).backward()
        for parameter in optimizer.params:
            if len(getattr(parameter, _SAMPLES)) != len(inputs):
                msg = "a layer of the model sees other rows than the records; keep one row a record in every layer"
                raise TaskError(msg)
    else:
        for parameter in optimizer.params:
            setattr(parameter, _SAMPLES, parameter.new_zeros((0, *parameter.shape)))
    optimizer.step()
