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

from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from client.task.task import Task


@dataclass(frozen=True)
class Augmentation:
    """Makes augmented copies of records."""

    task: Task
    copies: int  # of each record, at least 1

    def of(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the copies of records `(n, ...)`, and their targets: `(n · copies, ...)`, those of a record together.

        Raises:
            TaskError: if the task returns records of another form.
        """
        return augmented(self.task, inputs.repeat_interleave(self.copies, 0), generator_of(inputs.device)), (
            targets.repeat_interleave(self.copies, 0)
        )


def augmented(task: Task, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return what a task's `augment` makes of records `(n, ...)`, which it may change in place.

    Raises:
        TaskError: if that is not records of the same form.
    """
    return same_form(task.augment(inputs, generator), inputs)


def same_form(found: object, inputs: Tensor) -> Tensor:
    """Return what an `augment` made of these inputs.

    Raises:
        TaskError: if that is not records of the same form.
    """
    if not isinstance(found, torch.Tensor) or _form(found) != _form(inputs):
        kind = " ".join(map(str, _form(found))) if isinstance(found, torch.Tensor) else type(found).__name__
        msg = (
            f"its augment() turns {' '.join(map(str, _form(inputs)))} into {kind}; return as many records of the same "
            "shape, type and device"
        )
        raise TaskError(msg)
    return found.detach()


def _form(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], torch.device]:
    return tensor.dtype, tuple(tensor.shape), tensor.device


def generator_of(device: torch.device) -> torch.Generator:
    """Return torch's default generator of a device."""
    if device.type != "cuda":
        return torch.default_generator
    number: int | None = device.index  # torch's stubs forget that it may be None
    return torch.cuda.default_generators[torch.cuda.current_device() if number is None else number]
