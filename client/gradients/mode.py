"""What all ways have in common: records go in, and their clipped gradients are added to every `p.summed_grad`."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from opacus.grad_sample.gsm_base import AbstractGradSampleModule
from opacus.layers.dp_rnn import DPRNNBase
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from client.gradients.clipping import add_clipped
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from client.gradients.loss import RecordLoss
    from client.gradients.shares import Share


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return what is trained of a model, each parameter once, in the model's order: all that is not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def own(part: nn.Module) -> list[nn.Parameter]:
    """Return what is trained of a module itself, whatever it calls the parameters of its parts."""
    return [each for each in part._parameters.values() if each is not None and each.requires_grad]  # noqa: SLF001 - torch's


class GradientMode(AbstractGradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """A gradient-sample mode. As everywhere in Opacus, `to_standard_module` gives the model back."""

    loss: RecordLoss
    max_grad_norm: float
    trained: Sequence[nn.Parameter]  # those of the model when the mode was made
    precision: torch.dtype = torch.float32  # of the model's forward and backward pass; norms are float32 always
    dropped: int = 0  # records whose gradients were not finite
    values_a_record: int = 0  # how many one took in memory, beside those of plain training

    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        """Clip these records' gradients and add them to `p.summed_grad` of every parameter that is trained.

        Args:
            inputs: `(n, ...)`; without records, sums are zeros.
            targets: `(n, ...)`.

        Raises:
            TaskError: if a layer does not keep one row a record, or the model replaces a parameter; clipping would
                bound something else.
        """
        shares: Sequence[Share | None] = [None] * len(self.trained)
        if len(inputs):
            shares = self.shares(inputs, targets)
            if len(shares) != len(self.trained):
                msg = f"there are gradients of {len(shares)} of the model's {len(self.trained)} parameters"
                raise TaskError(msg)
            known = trainable(self._module)
            if len(known) != len(self.trained) or any(a is not b for a, b in zip(known, self.trained, strict=True)):
                msg = "the model replaces its parameters or freezes some in forward; keep those that it was made with"
                raise TaskError(msg)
        self.dropped += add_clipped(self.trained, shares, len(inputs), self.max_grad_norm)
        if len(inputs):
            self.values_a_record = sum(share.values for share in shares if share) // len(inputs)

    @abstractmethod
    def shares(self, inputs: Tensor, targets: Tensor) -> Sequence[Share | None]:
        """Return what these records add to the gradient of each of `trained`; None where it depends on none of them.

        Args:
            inputs: of at least one record, `(n, ...)`.
            targets: `(n, ...)`.

        Raises:
            TaskError: if a layer does not keep one row a record.
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


def refuse_packed(model: nn.Module) -> list[RemovableHandle]:
    """Have Opacus's recurrent layers refuse packed sequences, which they sort: their rows are other records then.

    A hook raises TaskError.
    """

    def refuse(layer: nn.Module, inputs: tuple[object, ...]) -> None:
        if any(isinstance(each, PackedSequence) for each in inputs):
            msg = f"{type(layer).__name__} is given packed sequences, which it sorts; give it padded ones"
            raise TaskError(msg)

    return [part.register_forward_pre_hook(refuse) for part in model.modules() if isinstance(part, DPRNNBase)]
