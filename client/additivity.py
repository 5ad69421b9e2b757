"""Whether the clipped sum of a batch is the sum of what its records give, in the very mode that trains.

`client.interactions` looks at plain gradients before. Here it is the numbers that would leave, with noise: as the mode
and the optimizer compute them, on the site's own device, of records that the site has. It is done when records are read
and, as a last line, on one batch of every round, before anything leaves.

Two halves of a batch, each by itself, must add up to the whole. If anything is drawn at random, which goes by place,
halves are replaced instead: f(a, b) - f(a', b) - f(a, b') + f(a', b') is nought in any sum of what single records give.
What is put in their place comes from the same batch, so that no other record is looked at.

For a sound task, differences are rounding, whatever the records are: a refusal tells of them only where nothing was
protected anyway.
"""

from __future__ import annotations

import math
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from client.draws import forked
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet
from client.gradients.optimizer import CipherOptimizer
from client.interactions import ALONE, InteractionError, sketch
from privacy.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from client.gradients.choice import Choice
    from client.gradients.mode import GradientMode
    from client.settings import Precision
    from client.task import Task

    Records = tuple[Tensor, Tensor]

_SAME_SHAPE, _OTHER_SHAPE = 1e-3, 2e-2  # of what a record adds, times the root of how many there are: errors differ
_ALONE = 8  # records that are looked at one by one
_UNCLIPPED = 1e9


@dataclass(frozen=True)
class ClippedSum:
    """What a mode and an optimizer make of a batch, without noise."""

    mode: GradientMode
    optimizer: CipherOptimizer

    def of(self, inputs: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Return a sketch of the sum of clipped gradients of records `(n, ...)`; to be asked between steps."""
        torch.manual_seed(seed)
        dropped = self.mode.dropped, self.optimizer.dropped
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.fill(inputs, targets)
        self.optimizer.clip_and_accumulate()
        parameters: list[Any] = list(self.optimizer.params)  # to which Opacus adds attributes
        sums = [each.summed_grad for each in parameters]
        found = sketch(
            [torch.zeros_like(each) if part is None else part for each, part in zip(parameters, sums, strict=True)]
        )
        for each in parameters:
            each.summed_grad = None
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.dropped, self.optimizer.dropped = dropped
        return found


def check_batch(clipped: ClippedSum, records: Records, most: float, luck: torch.Generator) -> None:
    """Refuse a task if records of a batch meet in its clipped sum. All generators are left as they were.

    Args:
        clipped: computes it.
        records: of the batch: inputs and targets `(n, ...)`.
        most: how much a record adds at most.
        luck: says which half of them is looked at, and seeds what the model draws.

    Raises:
        InteractionError: if they meet.
    """
    inputs, targets = records
    size, device = len(inputs), inputs.device
    if size < 2:  # noqa: PLR2004 - nobody to meet
        return
    half = (torch.randperm(size, generator=luck) < size // 2).to(device)
    seed = int(torch.randint(1 << 62, (1,), generator=luck))
    with forked():
        torch.manual_seed(seed)
        before = _states(device)
        whole = clipped.of(inputs, targets, seed)
        if before == _states(device) and clipped.mode.precision is torch.float32:
            rest = [clipped.of(inputs[part], targets[part], seed) for part in (half, ~half)]
            apart, tolerance = whole - rest[0] - rest[1], _OTHER_SHAPE
        else:
            others = inputs.roll(1, 0), targets.roll(1, 0)
            rest = [
                clipped.of(_mixed(part, others[0], inputs), _mixed(part, others[1], targets), seed)
                for part in (half, ~half)
            ]
            rest.append(-clipped.of(*others, seed))
            apart, tolerance = whole - rest[0] - rest[1] - rest[2], _SAME_SHAPE
    scale = max(most, *(float(each.norm()) / math.sqrt(size) for each in (whole, *rest)))
    if not float(apart.norm()) <= tolerance * math.sqrt(size) * scale:
        msg = f"what a record adds to an update depends on the other records of its batch; {ALONE}"
        raise InteractionError(msg)


def check_mode(task: Task, model: nn.Module, records: Records, choice: Choice, precision: Precision) -> None:
    """Refuse a task if records meet in the mode that trains it: unclipped, and clipped to the middle of their norms.

    Args:
        task: gives the loss.
        model: on the device that trains it; is not changed.
        records: inputs and targets `(n, ...)` of some records, on the same device.
        choice: the mode.
        precision: of the model's passes.

    Raises:
        TaskError: if they meet, or the mode fails.
    """
    batch = records[0][: choice.physical_batch], records[1][: choice.physical_batch]
    luck = torch.Generator().manual_seed(0)
    with _clipping(task, model, choice, precision, _UNCLIPPED) as clipped:
        norms = [
            float(clipped.of(batch[0][row : row + 1], batch[1][row : row + 1], 0).norm())
            for row in range(min(_ALONE, len(batch[0])))
        ]
        check_batch(clipped, batch, max(norms), luck)
    middle = sorted(norms)[len(norms) // 2]
    if 0 < middle < math.inf:
        with _clipping(task, model, choice, precision, middle) as clipped:
            check_batch(clipped, batch, middle, luck)


@contextmanager
def _clipping(task: Task, model: nn.Module, choice: Choice, precision: Precision, bound: float) -> Iterator[ClippedSum]:
    computed_in = torch.bfloat16 if precision == "bfloat16" else torch.float32
    mode = make_mode(choice.gradients, model, RecordLoss(task), bound, computed_in)
    try:
        optimizer = CipherOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=bound,
            expected_batch_size=1,
            loss_reduction="sum",
            randomness=Randomness.seeded(0),
        )
        with quiet(), closing(optimizer), forked():
            yield ClippedSum(mode, optimizer)
    finally:
        mode.to_standard_module()


def _mixed(part: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Take records of one batch where `(n,)` booleans say so, and of the other elsewhere."""
    return torch.where(part.view(-1, *[1] * (one.dim() - 1)), one, other)


def _states(device: torch.device) -> list[bytes]:
    """Return the states of the generators from which a model on this device draws."""
    found = [torch.get_rng_state()]
    if device.type == "cuda":
        found.append(torch.cuda.get_rng_state(device))
    return [state.numpy().tobytes() for state in found]
