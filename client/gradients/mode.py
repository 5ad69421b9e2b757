"""The base class of all modes: add records' clipped gradients to every `p.summed_grad`."""

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

from client.data.inputs import call, count, device_of
from client.gradients.clipping import add_clipped
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from client.data.inputs import Inputs
    from client.gradients.augmentation import Augmentation
    from client.gradients.loss import RecordLoss
    from client.gradients.record_gradients import RecordGradients


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return a model's trained (not frozen) parameters, each once, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def own(part: nn.Module) -> list[nn.Parameter]:
    """Return a module's own trained parameters, without those of its parts."""
    return [parameter for parameter in part._parameters.values() if parameter is not None and parameter.requires_grad]  # noqa: SLF001 - torch's


def layers_of(model: nn.Module) -> list[int]:
    """Return the number of each trained parameter's layer, from 0, in the order of `trainable`.

    A layer is a module with parameters of its own, such as weight and bias; a shared parameter is the first one's.
    """
    owners: dict[int, int] = {}
    for part in model.modules():
        number = len(set(owners.values()))
        for parameter in own(part):
            owners.setdefault(id(parameter), number)
    return [owners[id(parameter)] for parameter in trainable(model)]


class GradientMode(AbstractGradSampleModule):  # type: ignore[misc]  # opacus is untyped
    """A gradient-sample mode. As in Opacus, `to_standard_module` returns the model."""

    loss: RecordLoss
    max_grad_norm: float
    trained: Sequence[nn.Parameter]  # the model's, when the mode was made
    layers: Sequence[int] | None = None  # the number of each one's layer, if gradients are clipped layer by layer
    augmentation: Augmentation | None = None  # makes copies of each record
    precision: torch.dtype = torch.float32  # of the model's forward and backward pass; norms are always float32
    dropped: int = 0  # records whose gradients were not finite
    values_a_record: int = 0  # values in memory per record, on top of plain training
    _tables: Sequence[Mapping[str, Tensor | None]] = ()  # of every module's own parameters

    def fill(self, inputs: Inputs, targets: Tensor) -> None:
        """Clip these records' gradients and add them to `p.summed_grad` of every trained parameter.

        Args:
            inputs: `(n, ...)`, one tensor, a tuple or a dict; without records, sums are zeros.
            targets: `(n, ...)`.

        Raises:
            TaskError: if a layer does not keep one row per record, or the model replaces a parameter; clipping would
                not bound a record's influence.
        """
        gradients: Sequence[RecordGradients | None] = [None] * len(self.trained)
        records = targets.shape[0]
        if records:
            rows = self.augmentation.of(inputs, targets) if self.augmentation else (inputs, targets)
            gradients = self.per_record(*rows)
            if len(gradients) != len(self.trained):
                msg = f"only {len(gradients)} of the model's {len(self.trained)} parameters have gradients"
                raise TaskError(msg)
            self._check_parameters()
        if self.augmentation and self.augmentation.copies > 1:
            with torch.no_grad():
                gradients = [gradient and gradient.averaged(self.augmentation.copies) for gradient in gradients]
        if dropped := add_clipped(self.trained, gradients, records, self.max_grad_norm, self.layers):
            self.dropped += dropped  # torch makes setting a module's attributes slow
        if records and not self.values_a_record:
            self.values_a_record = sum(gradient.values for gradient in gradients if gradient) // records

    def _check_parameters(self) -> None:
        """Refuse a model whose trained parameters are no longer those in `trained`.

        `trainable` would take as long as the rest of a small model's bookkeeping; modules that appear later than the
        first batch have no part in the update.

        Raises:
            TaskError: if it replaces some or freezes them.
        """
        if not self._tables:
            self._tables = [part._parameters for part in self._module.modules()]  # noqa: SLF001 - torch's
        found = (parameter for table in self._tables for parameter in table.values())
        known = dict.fromkeys(id(parameter) for parameter in found if parameter is not None and parameter.requires_grad)
        if list(known) != [id(parameter) for parameter in self.trained]:
            msg = (
                "the model replaces its parameters or freezes some in forward; keep the parameters that it was made "
                "with"
            )
            raise TaskError(msg)

    def at_once(self, physical_batch: int) -> int:
        """Return the number of records whose copies are so many rows, or one record."""
        return max(1, physical_batch // self.augmentation.copies) if self.augmentation else physical_batch

    @abstractmethod
    def per_record(self, inputs: Inputs, targets: Tensor) -> Sequence[RecordGradients | None]:
        """Return the records' gradients of each parameter in `trained`; None for a parameter that has none.

        Args:
            inputs: `(n, ...)`, at least one record.
            targets: `(n, ...)`.

        Raises:
            TaskError: if a layer does not keep one row per record.
        """

    def outputs(self, inputs: Inputs) -> Tensor:
        """Run the model on `(n, ...)`, in the chosen precision."""
        with self.autocast(inputs):
            outputs: Tensor = call(self._module, inputs)
        if outputs.shape[:1] != (records := count(inputs),):
            msg = f"the model turns {records} records into {len(outputs)} outputs; keep one row per record"
            raise TaskError(msg)
        return outputs

    def autocast(self, inputs: Inputs) -> AbstractContextManager[object]:
        """Return the context in which the model runs."""
        if self.precision is torch.float32:
            return nullcontext()
        return _reduced(device_of(inputs).type, self.precision)


@contextmanager
def _reduced(device: str, precision: torch.dtype) -> Iterator[None]:
    """Compute in 16 bits; without oneDNN where it cannot, which it says too late for torch to compute by itself."""
    able = device != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    with (
        torch.autocast(device, precision, cache_enabled=False),
        nullcontext() if able else torch.backends.mkldnn.flags(enabled=False),
    ):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence library warnings about gradients on which users cannot act."""
    with warnings.catch_warnings():
        # torch, when hooks see a first layer whose inputs need no gradient; records never do
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        # torch, when it maps attention over records one by one, which is still the fastest way
        warnings.filterwarnings("ignore", message="There is a performance drop")
        # torch, about normalisation in a reduced precision
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        # Opacus's functorch mode, which mistakes integers for a reduced precision
        warnings.filterwarnings("ignore", message="In CPU autocast")
        # torch, about Intel's GPUs, when it is told to compute without oneDNN
        warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")
        yield


def check_rows(rows: int, records: int) -> None:
    """Refuse a layer whose rows are not the records.

    Raises:
        TaskError: if the number of rows differs from the number of records.
    """
    if rows != records:
        msg = "the rows in a layer of the model are not its records; keep one row per record in every layer"
        raise TaskError(msg)


def refuse_packed(model: nn.Module) -> list[RemovableHandle]:
    """Make Opacus's recurrent layers refuse packed sequences: they sort them, so rows no longer match records.

    The hook raises TaskError.
    """

    def refuse(layer: nn.Module, inputs: tuple[object, ...]) -> None:
        if any(isinstance(tensor, PackedSequence) for tensor in inputs):
            msg = f"{type(layer).__name__} is given packed sequences, which it sorts; pass padded ones"
            raise TaskError(msg)

    return [part.register_forward_pre_hook(refuse) for part in model.modules() if isinstance(part, DPRNNBase)]
