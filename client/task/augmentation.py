"""Check a task's `augment`: it varies each record by itself, with draws of the generator that it is given.

It is part of what happens to a record before its gradient is clipped. So what holds for the model must hold for it: no
record may affect another one's copies, and neither may the place in the batch, its size or an earlier batch. A fixed
seed would give the record after a missing one that record's draws, and so link the two.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.data.inputs import call, copied, count
from client.dpsgd.torch_draws import Draws
from client.gradients.augmentation import augmented, checked, exact_form
from client.task.independence import check_chance, check_independence, check_place
from client.task.interactions import check_gradients
from client.task.probe import Probe, same
from client.task.task import Task
from client.task.traces import check_traces
from privacy.errors import TaskError

if TYPE_CHECKING:
    from client.data.inputs import Inputs
    from client.task.probe import Example
    from privacy.run.settings import RunSettings

_ELSEWHERE = (
    "its augment() draws at random, but not from the generator that it is given, or sets its seed; pass "
    "generator=generator to every draw, and leave seeds to Cloister"
)
_MEET = (
    "its augment() mixes the records of a batch, or uses their place or number; vary each record by itself, with "
    "draws of the batch's shape"
)


def augments(task: Task) -> bool:
    """Return whether a task has an `augment` of its own."""
    return type(task).augment is not Task.augment


def check_asked(task: Task, name: str, settings: RunSettings) -> None:
    """Check that a task, called `name`, can make the copies that a run asks for.

    Raises:
        TaskError: if it has no `augment`.
    """
    if settings.training and settings.training.augmentation_multiplicity and not augments(task):
        msg = (
            f"the run asks for augmented copies of records, but {name} has no augment(); write it, or remove "
            "augmentation_multiplicity from [training]"
        )
        raise TaskError(msg)


class Augmented(nn.Module):
    """A task's augmentation before its model, so that the guard tries both as one model."""

    def __init__(self, task: Task, module: nn.Module, like: Inputs) -> None:
        super().__init__()
        self.module = module
        self._task, self._form = task, type(like)

    @override
    def forward(self, *values: Tensor, **named: Tensor) -> Tensor:
        inputs: Inputs = named or (values if self._form is tuple else values[0])
        outputs: Tensor = call(self.module, augmented(self._task, copied(inputs), torch.default_generator))
        return outputs


class _Flat(nn.Module):
    """All values of a record in one row, as what the guard compares."""

    @override
    def forward(self, *values: Tensor, **named: Tensor) -> Tensor:
        return torch.cat([tensor.reshape(len(tensor), -1).float() for tensor in (*values, *named.values())], 1)


def check_augmentation(probe: Probe, example: Example, seconds: float) -> None:
    """Refuse a task whose `augment`, if it has one, breaks the guarantee.

    Args:
        probe: the task and its model.
        example: the records to try it on.
        seconds: as for `check_gradients`.

    Raises:
        InteractionError: if gradients of augmented records interact.
        TaskError: if anything else is wrong; the message says what to change.
    """
    task = probe.task
    if not augments(task):
        return
    inputs, targets = example.batch()
    check_variations(probe, inputs)
    both = Probe(task, Augmented(task, probe.module, inputs), probe.records)
    check_traces(both, inputs, targets)
    check_gradients(both, example, seconds)


def check_variations(probe: Probe, inputs: Inputs) -> None:
    """Refuse an `augment` that mixes records, or draws from elsewhere.

    Raises:
        TaskError: says what to change.
    """
    _check_draws(probe, inputs)
    alone = Probe(probe.task, Augmented(probe.task, _Flat(), inputs), probe.records)
    try:
        check_independence(alone, inputs)
        check_chance(alone, inputs)
        with Draws(still=True):
            check_place(alone, inputs)
    except TaskError as error:
        raise TaskError(_MEET) from error


def _check_draws(probe: Probe, inputs: Inputs) -> None:
    """Refuse draws from elsewhere, and an `augment` that fails or returns records of another form."""
    before, results = _states(), []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        with probe.naming("augment()", count(inputs)):
            augmented_inputs: object = probe.task.augment(copied(inputs), generator)
        results.append(checked(augmented_inputs, exact_form(inputs)))
        if generator.initial_seed() != 0:
            raise TaskError(_ELSEWHERE)
    if _states() != before or not same(*results):
        raise TaskError(_ELSEWHERE)


def _states() -> tuple[object, ...]:
    """Return the states of the generators that a task might use instead."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002 - a task may use it
