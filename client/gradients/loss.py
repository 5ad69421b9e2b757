"""Compute every record's loss separately, and its gradient with respect to that record's output.

A task's loss is the mean over a batch. Computed over a whole batch, it could let a record change the gradients of
others: `CrossEntropyLoss(weight=w)` divides by the sum of the batch's weights, `ignore_index` by the number of targets
kept. So the task gets each record as a batch of one, and the losses are added. `known_losses` recognises losses that
torch adds faster; the comparison of modes with autograd (`comparison`) compares these, too, with what is computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from client.gradients.known_losses import sum_of_losses
from client.task.user_code import is_memory

if TYPE_CHECKING:
    from torch import Tensor

    from client.task.task import Task


class RecordLoss:
    """A task's loss, one record at a time.

    With `recognise`, gradients of a loss in `known_losses` are computed faster.
    """

    def __init__(self, task: Task, *, recognise: bool = True) -> None:
        self._task = task
        self._mapped = torch.vmap(self.of_one, randomness="different")
        self._can_be_mapped = True
        self._may_be_known = recognise

    def of_one(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one record, a scalar, from its output and target without the batch dimension."""
        return self._task.loss(output.unsqueeze(0), target.unsqueeze(0)).reshape(())

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the float32 gradient of each record's loss with respect to its own output, `(n, ...)` as `outputs`.

        It is computed from a copy of the outputs that is detached from the model, so nothing else on which the loss may
        depend gets a gradient.
        """
        with torch.enable_grad():
            held = outputs.detach().float().requires_grad_()
            total = self.known_sum(held, targets)
            (gradients,) = torch.autograd.grad(self.losses(held, targets).sum() if total is None else total, held)
        return gradients

    def known_sum(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return the sum of the records' losses, a scalar that depends on nothing else; None if they are not known.

        A loss that was not known once is mapped from then on.
        """
        total = sum_of_losses(self._task.loss, outputs.float(), targets) if self._may_be_known else None
        self._may_be_known = total is not None
        return total

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return each record's own loss `(n,)`."""
        if self._can_be_mapped:
            try:
                losses: Tensor = self._mapped(outputs, targets)
            except RuntimeError as error:  # for instance, the loss branches on values
                if is_memory(error):
                    raise
                self._can_be_mapped = False
            else:
                return losses
        return torch.stack([self.of_one(*record) for record in zip(outputs, targets, strict=True)])
