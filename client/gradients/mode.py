"""What all ways have in common: records go in, `p.grad_sample` or `p.summed_grad` comes out."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from opacus.grad_sample.gsm_base import AbstractGradSampleModule

from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from client.gradients.loss import RecordLoss


class GradientMode(AbstractGradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """A gradient-sample mode. As everywhere in Opacus, `to_standard_module` gives the model back."""

    loss: RecordLoss
    precision: torch.dtype = torch.float32  # of the model's forward and backward pass; norms are float32 always
    dropped: int = 0  # records whose gradients were not finite, where this mode clips

    @property
    def values_a_record(self) -> int:
        """How many values one record takes in memory, beside those of plain training."""
        return sum(parameter.numel() for parameter in self._module.parameters())

    @abstractmethod
    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        """Fill `p.grad_sample` with gradients of these records, or add to `p.summed_grad` what is clipped.

        Args:
            inputs: of at least one record, `(n, ...)`.
            targets: `(n, ...)`.

        Raises:
            TaskError: if a layer does not keep one row a record; clipping would bound something else.
        """

    def outputs(self, inputs: Tensor) -> Tensor:
        """Run the model on `(n, ...)`, in the precision that was asked for."""
        with self.autocast(inputs):
            found: Tensor = self(inputs)
        if len(found) != len(inputs):
            msg = f"the model turns {len(inputs)} records into {len(found)} outputs; keep one row a record"
            raise TaskError(msg)
        return found

    def autocast(self, inputs: Tensor) -> AbstractContextManager[object]:
        """Return the context in which the model is run."""
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(inputs.device.type, self.precision, cache_enabled=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what libraries remark on ways of computing gradients that nobody can change."""
    with warnings.catch_warnings():
        # torch, when hooks see a first layer whose inputs need no gradient; records never do
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # torch, when it maps attention over records one by one, which is the fastest way all the same
        warnings.filterwarnings("ignore", message="There is a performance drop")
        # torch, of normalisation in a reduced precision
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        # Opacus's functorch mode, which takes integers for a reduced precision
        warnings.filterwarnings("ignore", message="In CPU autocast")
        yield


def check_rows(rows: int, records: int) -> None:
    """Refuse gradients of anything but single records.

    Raises:
        TaskError: if there are not as many rows as records.
    """
    if rows != records:
        msg = "a layer of the model sees other rows than the records; keep one row a record in every layer"
        raise TaskError(msg)
