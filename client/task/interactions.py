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
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from client.dpsgd.draws import Draws, check_draws
from client.gradients.loss import RecordLoss
from client.task.independence import explained
from client.task.variations import Variations
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from client.task.probe import Example, Probe
    from client.task.variations import Making

ALONE = (
    "compute each record by itself on the way back too: no mean, norm, largest value, length or number of the batch in "
    "hooks, custom autograd functions, or what the model saves or keeps aside"
)
_SAME_SHAPE, _OTHER_SHAPE = 1e-4, 5e-3  # of the gradients' norms, in float32
_ROUNDINGS, _OTHER_ROUNDINGS = 8, 64  # the same, in units of what coarser numbers round to
_CANCELLED = 1e-5  # of the gradients of outputs: what is left where they cancel out is rounding
_DISTINCT = 16  # records whose gradients are computed one by one
_SMALL, _SIZES, _HUGE = 7, (64, 32, 16), 257  # records in a batch
_LARGEST = 0.2  # seconds that the gradient of the larger batch may take; a model that takes longer gets a smaller one
_LEAST = 2  # replacements that are tried however long it takes
_SKETCH = 1 << 18  # values of a gradient that are kept: of a larger one sums, so that they fit in memory beside it
_MEET = f"a record's gradient depends on the other records of its batch; {ALONE}"


class InteractionError(TaskError):
    """A task cannot be trained as it is written."""  # in the words of any other: nobody else learns more of the reason


def check_gradients(probe: Probe, example: Example, seconds: float) -> None:
    """Refuse a task in which a record's gradient depends on other records.

    Args:
        probe: a model in training mode, with any weights.
        example: the records to make batches of.
        seconds: how long to go on, beyond the least, in this thread's own time. Small models are done before.

    Raises:
        InteractionError: saying so, and what to look for.
        TaskError: if the task fails on these records.
    """
    _Check(probe, example).run(seconds)


def sketch(parts: Sequence[Tensor]) -> Tensor:
    """Return a gradient as one vector; of what is large, sums of values: as linear as the whole, and less memory."""
    most = max(256, _SKETCH // max(1, len(parts)))
    return torch.cat([_folded(part.detach().flatten().float(), most) for part in parts])


def _folded(values: Tensor, most: int) -> Tensor:
    if len(values) <= most:
        return values.clone()
    whole = len(values) // most * most
    folded = values[:whole].view(-1, most).sum(0)
    folded[: len(values) - whole] += values[whole:]
    return folded


class _Check:
    def __init__(self, probe: Probe, example: Example) -> None:
        self._probe, self._targets = probe, example.targets
        self._loss = RecordLoss(probe.task)
        self._parameters = [each for each in probe.module.parameters() if each.requires_grad]
        self._vary = Variations(example.inputs, torch.Generator().manual_seed(0))
        self._norm, self._floor = 0.0, 0.0  # of a record's gradient, on the average; below which all is rounding
        self._coarse = 0.0  # to how much numbers round
        self._seed = 0
        self._outputs = torch.empty(0)  # of the last batch

    def run(self, seconds: float) -> None:
        start = time.thread_time()
        batch = self._batch(_SMALL)
        drawn = self._check_draws(*batch)
        began = time.thread_time()
        first = self._gradient(*batch)
        if not first.isfinite().all():  # records of which this is so add nothing in training
            self._keep_finite()
            batch = self._batch(_SMALL)
            first = self._gradient(*batch)
        each = (time.thread_time() - began) / _SMALL
        large = next((size for size in _SIZES if size * each < _LARGEST), _SMALL)
        self._measure(*batch, first)
        self._check_alone((2, _SMALL, large), still=drawn)
        sound, possible = self._vary.sound, self._vary.possible
        cases = [(large, self._vary.any), (large, sound[0])]
        cases += [(_SMALL, make) for make in (*possible, *sound)]
        cases += [(large, make) for make in (*possible, sound[1])]
        cases += [(_HUGE, self._vary.any), (_HUGE, sound[0])]
        for number, (size, make) in enumerate(cases):
            if number < _LEAST or time.thread_time() - start < seconds:
                self._check_replacing(size, make)
        self._seed = 0
        if self._differ(_SMALL, _SAME_SHAPE, first, -self._gradient(*batch)):
            msg = f"its records' gradients depend on earlier batches; {ALONE}"
            raise InteractionError(msg)

    def _keep_finite(self) -> None:
        """Leave out the records whose gradient alone is not finite.

        Raises:
            TaskError: if none is left.
        """
        inputs, targets = self._vary.records, self._targets
        found = [self._gradient(inputs[row : row + 1], targets[row : row + 1]) for row in range(len(inputs))]
        finite = torch.tensor([bool(each.isfinite().all()) for each in found])
        if not finite.any():
            msg = "no gradient of its loss is finite; keep logarithms, roots and divisions off nought"
            raise TaskError(msg)
        self._vary, self._targets = replace(self._vary, records=inputs[finite]), targets[finite]

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        rows = self._vary.rows(size)
        return self._vary.records[rows], self._targets[rows]

    def _gradient(self, inputs: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the sum of the gradients of those records `(n, ...)` that are kept, `(parameters,)`."""
        outputs = self._probe.outputs(inputs.clone(), self._seed)
        with self._probe.naming("loss()", len(inputs)):
            back = self._loss.gradients(outputs, targets)
        if kept is not None:
            back = torch.where(kept.view(-1, *[1] * (back.dim() - 1)), back, 0.0)
        elif not self._floor > 0:
            self._floor = _CANCELLED * float(back.norm()) / len(inputs)
        self._probe.backward(outputs, back)
        self._outputs = outputs.detach()
        found = sketch([torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters])
        for each in self._probe.module.parameters():
            each.grad = None
        return found

    def _check_draws(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether anything is drawn at random; refuse what is drawn as it must not be."""
        watched = [Draws(), Draws()]
        for self._seed, draws in enumerate(watched):
            with draws:
                self._gradient(inputs, targets)
        self._seed = 0
        check_draws(watched)
        self._coarse = max(draws.rounding for draws in watched)
        return bool(watched[0].states)

    def _measure(self, inputs: Tensor, targets: Tensor, whole: Tensor) -> None:
        """Compute the gradient of each record within its batch, and hold their sum against that of all at once."""
        each = [self._gradient(inputs, targets, torch.arange(len(inputs)) == row) for row in range(len(inputs))]
        self._norm = float(torch.stack([one.norm() for one in each]).mean())
        if self._differ(len(inputs), _SAME_SHAPE, whole, *(-one for one in each)):
            raise InteractionError(_MEET)

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
                    raise InteractionError(msg)

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
            raise InteractionError(explained(self._probe, inputs, one, ~first, self._seed) or _MEET)

    def _differ(self, size: int, tolerance: float, one: Tensor, *others: Tensor) -> bool:
        """Return whether gradients that should cancel out do not; what is not finite cannot be told."""
        parts = (one, *others)
        apart, largest = float(torch.stack(parts).sum(0).norm()), max(float(part.norm()) for part in parts)
        scale = max(self._norm * size, largest)
        coarse = self._coarse * (_ROUNDINGS if tolerance == _SAME_SHAPE else _OTHER_ROUNDINGS)
        return math.isfinite(apart) and apart > max(tolerance, coarse) * scale + self._floor * size
