"""Augmentation multiplicity (De et al., 2022, arXiv 2204.13650, section 4): several random variations of each record.

A record's gradient is the mean of the gradients of its copies, clipped once. So it moves the sum by at most C, however
many copies there are, and ε is the same. The copies of all records of a part go through the model in one pass, and
`RecordGradients.averaged` puts their gradients together.

The draws come from torch's default generator of the device. A round seeds it from a secret, as for dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from client.data.inputs import as_inputs, mapped, named
from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.inputs import Batch, Inputs
    from client.task.task import Task


@dataclass(frozen=True)
class Augmentation:
    """Makes augmented copies of records."""

    task: Task
    copies: int  # of each record, at least 1

    def of(self, inputs: Inputs, targets: Tensor) -> Batch:
        """Return the copies of records `(n, ...)`, and their targets: `(n · copies, ...)`, those of a record together.

        Raises:
            TaskError: if the task returns records of another form.
        """
        copies = mapped(lambda tensor: tensor.repeat_interleave(self.copies, 0), inputs)
        return augmented(self.task, copies, generator_of(targets.device)), targets.repeat_interleave(self.copies, 0)


def augmented(task: Task, inputs: Inputs, generator: torch.Generator) -> Inputs:
    """Return what a task's `augment` makes of records `(n, ...)`, which it may change in place.

    Raises:
        TaskError: if that is not records of the same form.
    """
    form = exact_form(inputs)
    return checked(task.augment(inputs, generator), form)


def checked(value: object, form: object) -> Inputs:
    """Return what an `augment` made of inputs of this form.

    Raises:
        TaskError: if that is not records of the same form.
    """
    inputs = as_inputs(value)
    if inputs is None or exact_form(inputs) != form:
        kind = type(value).__name__ if inputs is None else exact_form(inputs)
        msg = f"its augment() turns {form} into {kind}; return as many records of the same shape, type and device"
        raise TaskError(msg)
    return mapped(torch.Tensor.detach, inputs)


def exact_form(inputs: Inputs) -> str:
    """Describe the form of inputs for comparison and for messages.

    >>> exact_form(torch.zeros(5, 4))
    'inputs torch.float32 (5, 4) on cpu'
    """
    forms = ((name, tensor.dtype, tuple(tensor.shape), tensor.device) for name, tensor in named(inputs).items())
    return ", ".join(f"{name} {dtype} {shape} on {device}" for name, dtype, shape, device in forms)


def generator_of(device: torch.device) -> torch.Generator:
    """Return torch's default generator of a device."""
    if device.type != "cuda":
        return torch.default_generator
    number: int | None = device.index  # torch's stubs forget that it may be None
    return torch.cuda.default_generators[torch.cuda.current_device() if number is None else number]
