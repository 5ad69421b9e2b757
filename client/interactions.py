"""Whether a record's gradient depends on the other records of its batch. DP-SGD clips what a record does by itself.

Outputs do not tell: a hook, a custom autograd function, or activations that are saved in fewer bits can tie records
together on the way back alone. So the gradients of parameters are looked at, unclipped, of batches of several sizes:

    alone     the gradient of a batch is the sum of those of its records, each in a batch of its own. What is drawn at
              random is held still for that, since draws go by place
    apart     some records are replaced and count for nothing: the gradient of the others stays as it was
    together  one half of the records is replaced, the other half, and both. In a sum of what single records give,
              f(a, b) - f(a', b) - f(a, b') + f(a', b') is nought, whatever is drawn
    again     the gradient of a batch stays as it was, whatever batches came between

A difference counts if it is larger than rounding can make it. In batches of one shape, all records go through the same
kernels, and only sums round: by 1e-6 of the gradients in float32, by 1e-2 in bfloat16. In batches of other shapes,
kernels differ, and a unit at its threshold may fall to the other side.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from client.draws import Draws, check_draws
from client.gradients.loss import RecordLoss
from client.meeting import explained
from client.trial import naming
from client.variations import Variations
from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from client.trial import Example, Trial
    from client.variations import Making

ALONE = (
    "compute each record by itself on the way back too: no mean, norm, largest value, length or number of the batch in "
    "hooks, custom autograd functions, or what the model saves or keeps aside"
)
_SAME_SHAPE, _OTHER_SHAPE, _ROUNDINGS = 1e-4, 5e-3, 8  # of the gradients' norms; in units of what numbers round to
_CANCELLED = 1e-5  # of the gradients of outputs: what is left where they cancel out is rounding
_DISTINCT = 16  # records whose gradients are computed one by one
_SMALL, _SIZES, _HUGE = 7, (64, 32, 16), 257  # records in a batch
_LONGEST = 10.0  # seconds for what is tried in any case; if it would take more, batches are made smaller
_EVALUATIONS = 24  # of the larger batch, in any case
_MEET = f"a record's gradient depends on the other records of its batch; {ALONE}"


@dataclass
class Effort:
    """How long to go on with what need not be tried in any case, in seconds of this thread's work."""

    seconds: float
    _start: float = field(default_factory=time.thread_time)

    @property
    def left(self) -> bool:
        """Whether there is time."""
        return time.thread_time() - self._start < self.seconds


def check_gradients(trial: Trial, example: Example, effort: Effort) -> None:
    """Refuse a task in which a record's gradient depends on other records.

    Args:
        trial: a model in training mode, with any weights.
        example: the records to make batches of.
        effort: for what is tried beyond the least.

    Raises:
        TaskError: saying so, and what to look for.
    """
    _Check(trial, example).run(effort)


class _Check:
    def __init__(self, trial: Trial, example: Example) -> None:
        self._trial, self._targets = trial, example.targets
        self._loss = RecordLoss(trial.task)
        self._parameters = [each for each in trial.module.parameters() if each.requires_grad]
        self._vary = Variations(example.inputs, torch.Generator().manual_seed(0))
        self._norm, self._floor = 0.0, 0.0  # of a record's gradient, on the average; below which all is rounding
        self._coarse = 0.0  # to how much numbers round
        self._seed = 0
        self._outputs = torch.empty(0)  # of the last batch

    def run(self, effort: Effort) -> None:
        batch = self._batch(_SMALL)
        drawn = self._check_draws(*batch)
        start = time.thread_time()
        first = self._gradient(*batch)
        seconds = (time.thread_time() - start) / _SMALL
        large = next((size for size in _SIZES if _EVALUATIONS * size * seconds < _LONGEST), _SMALL)
        self._measure(*batch, first)
        self._check_alone((2, _SMALL, large), still=drawn)
        sound, possible = self._vary.sound, self._vary.possible
        for make in (*sound, *possible):
            self._check_replacing(_SMALL, make)
        for make in (sound[0], self._vary.any):
            self._check_replacing(large, make)
        for size, makes in ((large, (sound[1], *possible)), (_HUGE, (sound[0], self._vary.any)), (2, possible)):
            for make in makes:
                if effort.left:
                    self._check_replacing(size, make)
        self._seed = 0
        if self._differ(_SMALL, _SAME_SHAPE, first, -self._gradient(*batch)):
            msg = f"its records' gradients depend on earlier batches; {ALONE}"
            raise TaskError(msg)

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        rows = self._vary.rows(size)
        return self._vary.records[rows], self._targets[rows]

    def _gradient(self, inputs: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the sum of the gradients of those records `(n, ...)` that are kept, `(parameters,)`."""
        outputs = self._trial.outputs(inputs.clone(), self._seed)
        with naming("loss()", len(inputs)):
            back = self._loss.gradients(outputs, targets)
        if kept is not None:
            back = torch.where(kept.view(-1, *[1] * (back.dim() - 1)), back, 0.0)
        elif not self._floor:
            self._floor = _CANCELLED * float(back.norm()) / len(inputs)
        self._trial.backward(outputs, back)
        self._outputs = outputs.detach()
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters]
        for each in self._trial.module.parameters():
            each.grad = None
        return torch.cat([part.flatten() for part in parts])

    def _check_draws(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether anything is drawn at random; refuse what is drawn as it must not be."""
        watched = [Draws(), Draws()]
        for self._seed, draws in enumerate(watched):
            with draws:
                self._gradient(inputs, targets)
        self._seed = 0
        check_draws(watched)
        self._coarse = _ROUNDINGS * max(draws.rounding for draws in watched)
        return bool(watched[0].states)

    def _measure(self, inputs: Tensor, targets: Tensor, whole: Tensor) -> None:
        """Compute the gradient of each record within its batch, and hold their sum against that of all at once."""
        each = [self._gradient(inputs, targets, torch.arange(len(inputs)) == row) for row in range(len(inputs))]
        self._norm = float(torch.stack([one.norm() for one in each]).mean())
        if self._differ(len(inputs), _SAME_SHAPE, whole, *(-one for one in each)):
            raise TaskError(_MEET)

    def _check_alone(self, sizes: tuple[int, ...], *, still: bool) -> None:
        """Hold batches of some sizes against their records, each alone."""
        distinct = self._vary.rows(len(self._targets))[:_DISTINCT]
        inputs, targets = self._vary.records[distinct], self._targets[distinct]
        if still:
            try:
                with Draws(still=True):
                    self._gradient(inputs[:2], targets[:2])
            except TaskError:
                return  # it cannot be held still
        with Draws(still=True) if still else nullcontext():
            each = [self._gradient(inputs[row : row + 1], targets[row : row + 1]) for row in range(len(inputs))]
            for size in sizes:
                rows = torch.arange(size) % len(inputs)
                parts = [-each[row] * count for row, count in enumerate(torch.bincount(rows).tolist())]
                if self._differ(size, _OTHER_SHAPE, self._gradient(inputs[rows], targets[rows]), *parts):
                    msg = f"a record's gradient is another one in a batch of {size} records than alone; {ALONE}"
                    raise TaskError(msg)

    def _check_replacing(self, size: int, make: Making) -> None:
        """Replace some records of a batch, and look at the others."""
        inputs, targets = self._batch(size)
        first = self._vary.half(size)
        shape = first.view(-1, *[1] * (inputs.dim() - 1))
        self._seed += 1
        whole = self._gradient(inputs, targets)
        try:
            other = make(inputs)
            one, two = torch.where(shape, other, inputs), torch.where(shape, inputs, other)
            changed = [self._gradient(each, targets) for each in (one, two, other)]
        except TaskError:
            return  # no site need have such records
        before, outputs = self._gradient(inputs, targets, ~first), self._outputs[~first]
        after, others = self._gradient(one, targets, ~first), self._outputs[~first]
        if (
            not torch.allclose(outputs, others, self._coarse, _SAME_SHAPE * float(outputs.abs().max()), equal_nan=True)
            or self._differ(size, _SAME_SHAPE, before, -after)
            or self._differ(size, _SAME_SHAPE, whole, -changed[0], -changed[1], changed[2])
        ):
            raise TaskError(explained(self._trial, inputs, one, ~first, self._seed) or _MEET)

    def _differ(self, size: int, tolerance: float, one: Tensor, *others: Tensor) -> bool:
        """Return whether gradients that should cancel out do not; what is not finite cannot be told."""
        parts = (one, *others)
        apart, largest = float(torch.stack(parts).sum(0).norm()), max(float(part.norm()) for part in parts)
        scale = max(self._norm * size, largest)
        return math.isfinite(apart) and apart > max(tolerance, self._coarse) * scale + self._floor * size
