"""Check, in the mode that trains, that a batch's clipped sum is the sum of its records' separate contributions.

`client.task.interactions` checks plain gradients first. This check uses the numbers that would leave the site (before
noise): as the mode and the optimizer compute them, on the site's own device, from the site's own records. It runs when
records are read and, as a last line of defence, on one batch of every round before anything leaves.

    halves   The two halves of a batch, computed separately, add up to the whole.
    swapped  Each half also takes the other's place: f(a, b) - f(b, b) - f(a, a) + f(b, a) is zero, as for any sum of
             single records' contributions. No other record is used, and each is missing in one of the four.

`halves` finds dependence on the batch size. `swapped` finds effects below a thousandth, since all its batches go
through the same kernels, and random draws depend only on the place. Models that draw at random or compute in bfloat16
get `swapped` only; for others, one of the two is chosen at random.

For a sound task, differences are rounding, whatever the records. So a refusal reveals something about records only if
the task did not protect them anyway.
"""

from __future__ import annotations

import math
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from client.data.inputs import Inputs, rows, singles
from client.data.site_records import records_of
from client.dpsgd.torch_draws import drawn_since, forked, seed_used
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.memory import peak
from client.gradients.mode import quiet
from client.gradients.noisy_optimizer import CipherOptimizer
from client.task.interactions import ALONE, InteractionError, sketch
from privacy.errors import TaskError
from privacy.failures import raised
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from client.data.inputs import Batch
    from client.data.site_records import Records
    from client.gradients.choice import Choice
    from client.gradients.mode import GradientMode
    from client.settings import Precision
    from client.task.task import Task

_SAME_SHAPE, _OTHER_SHAPE = 2e-4, 2e-2  # tolerance relative to the sums' norms
_ALONE = 8  # records that are computed one by one
_AT_ONCE, _SECONDS = 64, 2.0  # records per batch; time for all batches but the first
_UNCLIPPED = 1e9  # a clipping norm that clips nothing


@dataclass(frozen=True)
class ClippedSum:
    """The sum that a mode and an optimizer compute for a batch, without noise."""

    mode: GradientMode
    optimizer: CipherOptimizer
    least: float = 1e-6
    """Where gradients cancel out, a smaller remainder may be rounding."""

    def of(self, inputs: Inputs, targets: Tensor, seed: int) -> Tensor:
        """Return a sketch of the sum of clipped gradients of records `(n, ...)`. Call it between steps only."""
        seed_used(seed)
        dropped = self.mode.dropped
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.fill(inputs, targets)
        self.optimizer.clip_and_accumulate()
        parameters = self.optimizer.params
        gradient = sketch([parameter.summed_grad for parameter in parameters])
        for parameter in parameters:
            parameter.summed_grad = None
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.dropped = dropped
        return gradient


def check_batch(clipped: ClippedSum, records: Batch, rng: torch.Generator) -> None:
    """Refuse a task if records of a batch interact in its clipped sum. Torch's generators are left as they were.

    Args:
        clipped: computes the sum.
        records: the batch: inputs and targets `(n, ...)`; if n is odd, the last record is left out.
        rng: chooses the halves and the check, and seeds the model's draws.

    Raises:
        InteractionError: if they interact.
    """
    _check_sum(clipped, records, rng, halves=bool(torch.rand(1, generator=rng) < 1 / 2))


def _check_sum(clipped: ClippedSum, records: Batch, rng: torch.Generator, *, halves: bool) -> None:
    """Run one of the two checks: `halves` if asked for and possible, else `swapped`."""
    pairs = len(records[1]) // 2
    if not pairs:
        return  # a single record cannot interact
    order = torch.arange(2 * pairs)
    one, other = torch.randperm(2 * pairs, generator=rng).split(pairs)
    swapped = order.scatter(0, one, other).scatter(0, other, one)
    first = torch.zeros_like(order, dtype=torch.bool).index_fill(0, one, value=True)
    seed = int(torch.randint(1 << 62, (1,), generator=rng))

    def summed(chosen: Tensor) -> Tensor:
        return clipped.of(rows(records[0], chosen), records[1][chosen], seed)

    with forked():
        whole = summed(order)
        if halves and clipped.mode.precision is torch.float32 and not drawn_since(seed):
            tolerance, rest = _OTHER_SHAPE, [summed(order[first]), summed(order[~first])]
        else:
            tolerance = _SAME_SHAPE
            rest = [summed(order.where(first, swapped)), summed(swapped.where(first, order)), -summed(swapped)]
    apart = whole - torch.stack(rest).sum(0)
    largest = max(float(gradient.norm()) for gradient in (whole, *rest))
    if float(apart.norm()) > tolerance * largest + clipped.least:
        msg = f"a record's contribution to an update depends on the other records of its batch; {ALONE}"
        raise InteractionError(msg)


def check_mode(task: Task, model: nn.Module, records: Records | Batch, order: Tensor, choice: Choice,
               precision: Precision, *, at_once: int = _AT_ONCE) -> None:  # fmt: skip
    """Refuse a task if records interact in the mode that trains it: unclipped, and clipped to their median norm.

    Args:
        task: gives the loss.
        model: on the device that trains it; is not changed.
        records: a site's, or a batch of them.
        order: indices of the records to use, `(k,)`; those after the first batch only as long as there is time.
        choice: the mode.
        precision: of the model's passes.
        at_once: the number of records per batch.

    Raises:
        TaskError: if they interact, or the mode fails.
    """
    device = next(model.parameters()).device
    parts = records_of(records).to(device).parts(order, min(at_once, choice.physical_batch))
    first, rng = next(parts), torch.Generator().manual_seed(0)
    with _clipping(task, model, choice, precision, _UNCLIPPED) as clipped:
        norms = [
            float(clipped.of(*record, 0).norm())
            for record in zip(singles(first[0])[:_ALONE], first[1][:_ALONE].split(1), strict=True)
        ]
        check_batch(clipped, (rows(first[0], slice(_AT_ONCE)), first[1][:_AT_ONCE]), rng)
    middle = sorted(norms)[len(norms) // 2]
    if not 0 < middle < math.inf:
        return
    with _clipping(task, model, choice, precision, middle) as clipped:
        check_batch(clipped, first, rng)
        start = time.thread_time()
        for part in parts:
            if time.thread_time() - start > _SECONDS:
                break
            _check_sum(clipped, part, rng, halves=False)


def memory_of(task: Task, model: nn.Module, records: Batch, choice: Choice, precision: Precision, number: int) -> int:
    """Return the most memory, in bytes, that the gradients of so many records take at any time.

    Args:
        task: gives the loss.
        model: on the device that trains it; is not changed.
        records: inputs and targets `(n, ...)`, used in turn.
        choice: the mode.
        precision: of the model's passes.
        number: of records.

    Raises:
        TaskError: if the mode fails.
    """
    chosen = torch.arange(number, device=records[1].device) % len(records[1])
    inputs, targets = rows(records[0], chosen), records[1][chosen]
    with _clipping(task, model, choice, precision, _UNCLIPPED) as clipped:
        clipped.of(inputs, targets, 0)  # the first time, libraries allocate memory of their own
        return peak(targets.device, lambda: clipped.of(inputs, targets, 0))


@contextmanager
def _clipping(task: Task, model: nn.Module, choice: Choice, precision: Precision, bound: float) -> Iterator[ClippedSum]:
    computed_in = torch.bfloat16 if precision == "bfloat16" else torch.float32
    mode = make_mode(choice.gradients, model, RecordLoss(task), bound, computed_in)
    try:
        optimizer = CipherOptimizer(
            torch.optim.SGD(mode.trained, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=bound,
            expected_batch_size=1,
            loss_reduction="sum",
            randomness=Randomness.seeded(0),
        )
        with quiet(), closing(optimizer), forked():
            yield ClippedSum(mode, optimizer)
    except TaskError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = raised(error, type(task).__module__)  # not its message, which may quote a record
        msg = f"its gradients by {choice.gradients} fail on some records ({where}); correct the task there"
        raise TaskError(msg) from error
    finally:
        mode.to_standard_module()
