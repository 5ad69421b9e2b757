"""Whether the clipped sum of a batch is the sum of what its records give, in the very mode that trains.

`client.task.interactions` looks at plain gradients before. Here it is the numbers that would leave, with noise: as the
mode and the optimizer compute them, on the site's own device, of records that the site has. It is done when records are
read and, as a last line, on one batch of every round, before anything leaves.

    halves   two halves of a batch, each by itself, add up to the whole
    swapped  each half is put in the other's place too: f(a, b) - f(b, b) - f(a, a) + f(b, a) is nought, as in any sum
             of what single records give. No other record is looked at, and each is missing in one of the four

The first finds what goes by the size of a batch. The second finds less than a thousandth, since all batches go through
the same kernels, and what is drawn at random goes by place; such models have that alone. Of others, chance has one or
the other done.

For a sound task, differences are rounding, whatever the records are: a refusal tells of them only where nothing was
protected anyway.
"""

from __future__ import annotations

import math
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from client.dpsgd.draws import drawn_since, forked, seed_used
from client.gradients.choice import make_mode
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet
from client.gradients.optimizer import CipherOptimizer
from client.task.interactions import ALONE, InteractionError, sketch
from privacy.errors import TaskError
from privacy.failures import raised
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from client.gradients.choice import Choice
    from client.gradients.mode import GradientMode
    from client.settings import Precision
    from client.task.task import Task

    Records = tuple[Tensor, Tensor]

_SAME_SHAPE, _OTHER_SHAPE = 2e-4, 2e-2  # of the sums' norms
_ALONE = 8  # records that are looked at one by one
_AT_ONCE, _SECONDS = 64, 2.0  # records; for all but the first of them
_UNCLIPPED = 1e9


@dataclass(frozen=True)
class ClippedSum:
    """What a mode and an optimizer make of a batch, without noise."""

    mode: GradientMode
    optimizer: CipherOptimizer
    least: float = 1e-6
    """What is smaller than this may be what rounding leaves of gradients that cancel out."""

    def of(self, inputs: Tensor, targets: Tensor, seed: int) -> Tensor:
        """Return a sketch of the sum of clipped gradients of records `(n, ...)`; to be asked between steps."""
        seed_used(seed)
        dropped = self.mode.dropped
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.fill(inputs, targets)
        self.optimizer.clip_and_accumulate()
        parameters: list[Any] = list(self.optimizer.params)  # to which Opacus adds attributes
        found = sketch([each.summed_grad for each in parameters])
        for each in parameters:
            each.summed_grad = None
        self.optimizer.zero_grad(set_to_none=True)
        self.mode.dropped = dropped
        return found


def check_batch(clipped: ClippedSum, records: Records, rng: torch.Generator) -> None:
    """Refuse a task if records of a batch meet in its clipped sum. All generators are left as they were.

    Args:
        clipped: computes it.
        records: of the batch: inputs and targets `(n, ...)`; of an odd number, the last one is left out.
        rng: says which half of them is looked at, and seeds what the model draws.

    Raises:
        InteractionError: if they meet.
    """
    _check_sum(clipped, records, rng, halves=bool(torch.rand(1, generator=rng) < 1 / 2))


def _check_sum(clipped: ClippedSum, records: Records, rng: torch.Generator, *, halves: bool) -> None:
    """The same; by halves alone, if that is asked for and can be."""
    pairs = len(records[0]) // 2
    if not pairs:
        return  # nobody to meet
    rows = torch.arange(2 * pairs)
    one, other = torch.randperm(2 * pairs, generator=rng).split(pairs)
    swapped = rows.scatter(0, one, other).scatter(0, other, one)
    first = torch.zeros_like(rows, dtype=torch.bool).index_fill(0, one, value=True)
    seed = int(torch.randint(1 << 62, (1,), generator=rng))

    def summed(rows: Tensor) -> Tensor:
        return clipped.of(records[0][rows], records[1][rows], seed)

    with forked():
        whole = summed(rows)
        if halves and clipped.mode.precision is torch.float32 and not drawn_since(seed):
            tolerance, rest = _OTHER_SHAPE, [summed(rows[first]), summed(rows[~first])]
        else:
            tolerance = _SAME_SHAPE
            rest = [summed(rows.where(first, swapped)), summed(swapped.where(first, rows)), -summed(swapped)]
    apart = whole - torch.stack(rest).sum(0)
    largest = max(float(each.norm()) for each in (whole, *rest))
    if float(apart.norm()) > tolerance * largest + clipped.least:
        msg = f"what a record adds to an update depends on the other records of its batch; {ALONE}"
        raise InteractionError(msg)


def check_mode(task: Task, model: nn.Module, records: Records, order: Tensor, choice: Choice, precision: Precision,
               *, at_once: int = _AT_ONCE) -> None:  # fmt: skip
    """Refuse a task if records meet in the mode that trains it: unclipped, and clipped to the middle of their norms.

    Args:
        task: gives the loss.
        model: on the device that trains it; is not changed.
        records: inputs and targets `(n, ...)`.
        order: which of them to look at, `(k,)`; after the first ones, the others as long as there is time.
        choice: the mode.
        precision: of the model's passes.
        at_once: how many records are looked at together.

    Raises:
        TaskError: if they meet, or the mode fails.
    """
    device = next(model.parameters()).device
    chosen = order.to(records[0].device).split(min(at_once, choice.physical_batch))
    parts = ((records[0][rows].to(device), records[1][rows].to(device)) for rows in chosen)
    first, rng = next(parts), torch.Generator().manual_seed(0)
    with _clipping(task, model, choice, precision, _UNCLIPPED) as clipped:
        norms = [
            float(clipped.of(first[0][row : row + 1], first[1][row : row + 1], 0).norm())
            for row in range(min(_ALONE, len(first[0])))
        ]
        check_batch(clipped, (first[0][:_AT_ONCE], first[1][:_AT_ONCE]), rng)
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
        where = raised(error, type(task).__module__)  # and not in its words, which may quote a record
        msg = f"its gradients by {choice.gradients} fail on some records ({where}); mend it"
        raise TaskError(msg) from error
    finally:
        mode.to_standard_module()
