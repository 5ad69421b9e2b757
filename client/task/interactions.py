"""Check that a record's gradient does not depend on the other records of its batch.

DP-SGD clips each record's own gradient. Outputs do not reveal every interaction: a hook, a custom autograd function, or
activations saved in fewer bits can make records interact in the backward pass alone. So the checks compare unclipped
parameter gradients of batches of several sizes:

    alone     The gradient of a batch is the sum of its records' gradients, each computed in a batch of one. Random
              draws are held fixed, since they depend on the place in the batch.
    apart     Some records are replaced and masked out of the loss: the gradient of the others does not change.
    together  One half of the records is replaced, then the other half, then both. If records contribute separately,
              f(a, b) - f(a', b) - f(a, b') + f(a', b') is zero, whatever is drawn.
    again     The gradient of a batch does not change after other batches.

A difference counts if rounding cannot explain it. In batches of one shape, all records go through the same kernels, and
only sums round: by 1e-6 of the gradients in float32, by 1e-2 in bfloat16. In batches of other shapes, kernels differ,
and a unit at its threshold may fall on the other side. Some models amplify rounding: so a difference counts only if it
is there in double precision, too (`client.task.double_precision`).
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from client.data.inputs import copied, mapped, rows, singles
from client.dpsgd.torch_draws import Draws, check_draws
from client.gradients.loss import RecordLoss
from client.task.double_precision import STRICTER, in_double
from client.task.independence import explained
from client.task.variations import Variations
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from client.data.inputs import Batch, Inputs
    from client.task.probe import Example, Probe
    from client.task.variations import Making

ALONE = (
    "compute each record by itself in the backward pass too: no mean, norm, maximum or size of the batch in hooks, "
    "custom autograd functions, or anything that the model saves"
)
_SAME_SHAPE, _OTHER_SHAPE = 1e-4, 5e-3  # tolerance relative to the gradients' norms, in float32
_ROUNDINGS, _OTHER_ROUNDINGS = 8, 64  # tolerance in units of a coarser type's rounding error
_AMPLIFIED = 64  # roundings of float32, by which batches have to differ if rounding is why they do
_TRIES = 8  # at such roundings: what is amplified most varies much from one to the next
_CANCELLED = 1e-5  # relative to the gradients of outputs: where they cancel out, a smaller remainder is rounding
_DISTINCT = 16  # records whose gradients are computed one by one
_SMALL, _SIZES, _HUGE = 7, (64, 32, 16), 257  # records in a batch
_LARGEST = 0.2  # seconds that the gradient of the larger batch may take; a slower model gets a smaller batch
_LEAST = 2  # replacements to try however long they take
_SKETCH = 1 << 18  # values kept of a gradient; larger ones are folded into sums to save memory
_MEET = f"a record's gradient depends on the other records of its batch; {ALONE}"


class InteractionError(TaskError):
    """A task cannot be trained as it is written."""  # the same words for every reason: others learn no more


def check_gradients(probe: Probe, example: Example, seconds: float) -> None:
    """Refuse a task in which a record's gradient depends on other records.

    Args:
        probe: a model in training mode, with any weights.
        example: the records from which batches are made.
        seconds: how long to go on after the required checks, in CPU seconds of this thread. Small models need less.

    Raises:
        InteractionError: if a gradient does; the message says what to look for.
        TaskError: if the task fails on these records.
    """
    _Check(probe, example).run(seconds)


def sketch(parts: Sequence[Tensor]) -> Tensor:
    """Return a gradient as one vector. Large parts are folded into sums, which is linear too and saves memory."""
    most = max(256, _SKETCH // max(1, len(parts)))
    return torch.cat([_folded(part.detach().flatten().float(), most) for part in parts])


def _folded(values: Tensor, most: int) -> Tensor:
    if len(values) <= most:
        return values.clone()
    whole = len(values) // most * most
    folded = values[:whole].view(-1, most).sum(0)
    folded[: len(values) - whole] += values[whole:]
    return folded


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the chosen records `(n,)` from one batch, the rest from another."""
    return torch.where(chosen.view(-1, *[1] * (one.dim() - 1)), one, other)


class _Check:
    def __init__(self, probe: Probe, example: Example) -> None:
        self._probe, self._targets = probe, example.targets
        self._loss = RecordLoss(probe.task, recognise=False)
        self._parameters = [parameter for parameter in probe.module.parameters() if parameter.requires_grad]
        self._vary = Variations(example.inputs, torch.Generator().manual_seed(0))
        self._norm, self._floor = 0.0, 0.0  # mean norm of a record's gradient; floor below which all is rounding
        self._coarse = 0.0  # relative rounding error of the numbers used
        self._strict = 1.0  # factor of all tolerances
        self._seed = 0
        self._outputs = torch.empty(0)  # of the last batch

    def run(self, seconds: float) -> None:
        start = time.thread_time()
        batch = self._batch(_SMALL)
        drawn = self._check_draws(*batch)
        began = time.thread_time()
        first = self._gradient(*batch)
        if not first.isfinite().all():  # training drops such records
            self._keep_finite()
            batch = self._batch(_SMALL)
            first = self._gradient(*batch)
        per_record = (time.thread_time() - began) / _SMALL
        large = next((size for size in _SIZES if size * per_record < _LARGEST), _SMALL)
        self._measure(*batch)
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
        if self._differ(_SMALL, _SAME_SHAPE, first, -self._gradient(*batch)):  # bit by bit the same computation
            msg = f"the gradients of records depend on earlier batches; {ALONE}"
            raise InteractionError(msg)

    def _keep_finite(self) -> None:
        """Leave out records whose own gradient is not finite.

        Raises:
            TaskError: if none is left.
        """
        inputs, targets = self._vary.records, self._targets
        gradients = [self._gradient(*record) for record in zip(singles(inputs), targets.split(1), strict=True)]
        finite = torch.tensor([bool(gradient.isfinite().all()) for gradient in gradients])
        if not finite.any():
            msg = "no gradient of its loss is finite; keep logarithms, roots and divisions away from zero"
            raise TaskError(msg)
        self._vary, self._targets = replace(self._vary, records=rows(inputs, finite)), targets[finite]

    def _batch(self, size: int) -> Batch:
        chosen = self._vary.rows(size)
        return rows(self._vary.records, chosen), self._targets[chosen]

    def _gradient(self, inputs: Inputs, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the sum of the gradients of the kept records, `(parameters,)`; inputs are `(n, ...)`."""
        outputs = self._probe.outputs(copied(inputs), self._seed)
        with self._probe.naming_loss(outputs.detach(), targets):
            back = self._loss.gradients(outputs, targets)
        if kept is not None:
            back = torch.where(kept.view(-1, *[1] * (back.dim() - 1)), back, 0.0)
        elif not self._floor > 0:
            self._floor = _CANCELLED * float(back.norm()) / len(targets)
        self._probe.backward(outputs, back)
        self._outputs = outputs.detach()
        gradient = sketch(
            [
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for parameter in self._parameters
            ]
        )
        for parameter in self._probe.module.parameters():
            parameter.grad = None
        return gradient

    def _check_draws(self, inputs: Inputs, targets: Tensor) -> bool:
        """Return whether the task draws at random; refuse draws that are not allowed."""
        watched = [Draws(), Draws()]
        for self._seed, draws in enumerate(watched):
            with draws:
                self._gradient(inputs, targets)
        self._seed = 0
        check_draws(watched)
        self._coarse = max(draws.rounding for draws in watched)
        return bool(watched[0].states)

    def _measure(self, inputs: Inputs, targets: Tensor) -> None:
        """Compute each record's gradient within its batch; check that they add up to the gradient of the batch."""

        def apart() -> bool:
            whole, places = self._gradient(inputs, targets), torch.arange(len(targets))
            gradients = [self._gradient(inputs, targets, places == row) for row in range(len(targets))]
            self._norm = float(torch.stack([gradient.norm() for gradient in gradients]).mean())
            return self._differ(len(targets), _SAME_SHAPE, whole, *(-gradient for gradient in gradients))

        if apart() and self._in_double(apart):
            raise InteractionError(_MEET)

    def _check_alone(self, sizes: tuple[int, ...], *, still: bool) -> None:
        """Compare gradients of batches of some sizes with those of their records, each alone."""
        distinct = self._vary.rows(len(self._targets))[:_DISTINCT]
        inputs, targets = rows(self._vary.records, distinct), self._targets[distinct]

        def alone() -> list[Tensor]:
            return [self._gradient(*record) for record in zip(singles(inputs), targets.split(1), strict=True)]

        def apart(size: int, gradients: list[Tensor]) -> bool:
            chosen = torch.arange(size) % len(targets)
            parts = [-gradients[row] * times for row, times in enumerate(torch.bincount(chosen).tolist())]
            return self._differ(size, _OTHER_SHAPE, self._gradient(rows(inputs, chosen), targets[chosen]), *parts)

        def again(size: int) -> bool:
            return apart(size, alone())

        if still:
            try:
                with Draws(still=True):
                    self._gradient(rows(inputs, slice(2)), targets[:2])
            except TaskError:
                return  # these draws cannot be held fixed
        with Draws(still=True) if still else nullcontext():
            gradients = alone()
            for size in sizes:
                if apart(size, gradients) and self._in_double(partial(again, size)):
                    msg = f"a record's gradient in a batch of {size} records differs from its gradient alone; {ALONE}"
                    raise InteractionError(msg)

    def _check_replacing(self, size: int, make: Making) -> None:
        """Replace some records of a batch, and check that the others do not change."""
        inputs, targets = self._batch(size)
        first = self._vary.half(size)
        self._seed += 1
        try:
            other = make(inputs)
            one, two = mapped(partial(_where, first), other, inputs), mapped(partial(_where, first), inputs, other)
            changed = [self._gradient(batch, targets) for batch in (one, two, other)]
        except TaskError:
            return  # a site need not have such records

        def apart(changed: list[Tensor]) -> bool:
            whole = self._gradient(inputs, targets)
            before, outputs = self._gradient(inputs, targets, ~first), self._outputs[~first]
            after, others = self._gradient(one, targets, ~first), self._outputs[~first]
            close = _SAME_SHAPE * self._strict * float(outputs.abs().max())
            return (
                not torch.allclose(outputs, others, self._coarse, close, equal_nan=True)
                or self._differ(size, _SAME_SHAPE, before, -after)
                or self._differ(size, _SAME_SHAPE, whole, -changed[0], -changed[1], changed[2])
            )

        if apart(changed) and self._in_double(
            lambda: apart([self._gradient(batch, targets) for batch in (one, two, other)])
        ):
            raise InteractionError(explained(self._probe, inputs, one, ~first, self._seed) or _MEET)

    def _in_double(self, apart: Callable[[], bool]) -> bool:
        """Return whether gradients differ not only by rounding.

        They do if they differ in double precision, or cannot be computed in it; or if rounding has no such effect.
        """
        kept = self._probe, self._coarse, self._strict, self._norm

        def amplified(seed: int) -> bool:
            self._probe, self._coarse, self._strict, self._norm = kept
            with in_double(self._probe, _AMPLIFIED * torch.finfo(torch.float32).eps, seed) as self._probe:
                return apart()

        try:
            with in_double(self._probe) as self._probe:
                self._coarse, self._strict = torch.finfo(torch.float64).eps, STRICTER
                if apart():
                    return True
            return not any(map(amplified, range(_TRIES)))
        except TaskError:
            return True
        finally:
            self._probe, self._coarse, self._strict, self._norm = kept

    def _differ(self, size: int, tolerance: float, one: Tensor, *others: Tensor) -> bool:
        """Return whether gradients that should cancel out do not; False if they are not finite in float32."""
        parts = (one, *others)
        apart, largest = float(torch.stack(parts).sum(0).norm()), max(float(part.norm()) for part in parts)
        scale = max(self._norm * size, largest)
        coarse = self._coarse * (_ROUNDINGS if tolerance == _SAME_SHAPE else _OTHER_ROUNDINGS)
        if not math.isfinite(apart):
            return self._strict < 1
        return apart > max(tolerance * self._strict, coarse) * scale + self._floor * self._strict * size
