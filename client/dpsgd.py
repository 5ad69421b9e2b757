"""DP-SGD (Abadi et al., 2016) with Opacus.

What Opacus leaves to its caller, and what goes wrong if the caller does not look:

- Batches are Poisson samples: each record is in a step's batch with probability `sample_rate`, by itself. The
  accountant assumes exactly that; shuffled batches cost far more than it would say.
- A step whose batch is empty still adds noise and still counts. Skipping it would cost utility and, worse, tell that
  the batch was empty.
- Gradients are divided by sample_rate times the size that the site declared in public, never by a private count.
- Noise comes from a cipher, not from torch's generator.

How a batch's clipped sum is computed is another matter: see `client.gradients`.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from client.gradients.choice import Choice, choose, make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet
from client.gradients.optimizer import CipherOptimizer
from client.settings import Computing
from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from client.gradients.mode import GradientMode
    from client.task import Task
    from privacy.manifest import Manifest
    from privacy.randomness import Randomness

log = logging.getLogger("cloister.agent")

_DEFAULT = Computing()
_CHOICES: WeakKeyDictionary[Task, dict[Computing, Choice]] = WeakKeyDictionary()


def train(task: Task, model: nn.Module, records: tuple[Tensor, Tensor], size: int, manifest: Manifest,
          randomness: Randomness, *, computing: Computing = _DEFAULT) -> None:  # fmt: skip
    """Train `model` in place for one round.

    Args:
        task: gives the loss.
        model: on the device to train on.
        records: inputs and targets `(n, ...)`, on the same device.
        size: how many training records the site declares in public, about n.
        manifest: steps, sampling rate, learning rate, clipping norm and σ.
        randomness: of sampling and noise; a new one every round.
        computing: the site's settings of how to compute gradients.

    Raises:
        TaskError: if there is no way to compute the model's gradients, or the run trains nothing.
    """
    training, norm = manifest.settings.training, manifest.settings.privacy.max_grad_norm
    if training is None or norm is None:
        msg = f"the run {manifest.settings.name} gathers statistics; it trains nothing"
        raise TaskError(msg)
    if training.steps_per_round == 0:
        return
    choice = way_to_train(task, model, computing)
    precision = torch.bfloat16 if computing.precision == "bfloat16" else torch.float32
    mode = make_mode(choice.gradients, model, RecordLoss(task), norm, precision)
    optimizer = CipherOptimizer(
        torch.optim.SGD(model.parameters(), lr=training.learning_rate),
        noise_multiplier=manifest.update_noise,
        max_grad_norm=norm,
        expected_batch_size=max(1.0, training.sample_rate * size),
        loss_reduction="mean",
        randomness=randomness,
    )
    try:
        with quiet(), closing(optimizer):
            for _ in range(training.steps_per_round):
                chosen = torch.from_numpy(randomness.uniform(len(records[0])) < training.sample_rate)
                optimizer.draw_ahead()
                _step(mode, optimizer, records, chosen.nonzero().squeeze(1), choice.physical_batch)
    finally:
        mode.to_standard_module()
    if dropped := mode.dropped + optimizer.dropped:
        log.warning("in %d places of this round's batches a record had no finite gradient; it added nothing", dropped)


def way_to_train(task: Task, model: nn.Module, computing: Computing) -> Choice:
    """Choose how to compute a task's gradients, once, by trying on records that the task makes up.

    Raises:
        TaskError: if there is no way, or not the one that the site's settings name.
    """
    known = _CHOICES.setdefault(task, {})
    if computing not in known:
        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            inputs, targets = (part.to(device) for part in task.example())
        known[computing] = made = choose(task, model, (inputs, targets), computing)
        log.info(
            "%s: gradients by %s, %d records at a time: %s",
            type(task).__name__, made.gradients, made.physical_batch, made.reason,
        )  # fmt: skip
    return known[computing]


def _step(
    mode: GradientMode,
    optimizer: CipherOptimizer,
    records: tuple[Tensor, Tensor],
    chosen: Tensor,
    physical_batch: int,
) -> None:
    """Take one step on the chosen records `(k,)`, in parts. There may be none: noise counts all the same.

    Raises:
        TaskError: if gradients are of anything but single records; clipping would bound something else.
    """
    inputs, targets = records
    parts = chosen.to(inputs.device).split(physical_batch)
    for number, part in enumerate(parts, start=1):
        optimizer.signal_skip_step(number < len(parts))
        optimizer.zero_grad(set_to_none=True)
        if len(part):
            mode.fill(inputs[part], targets[part])
        optimizer.step()
