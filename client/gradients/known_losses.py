"""Recognise losses whose sum over separate records torch computes in one call.

Mapping a loss over records takes longer than the rest of a small model's step, yet most losses are one call of a
function of torch. `sum_of_losses` asks a task's loss what it calls, in every step anew: the loss gets stand-ins for one
record's output and target, and `_Listener` sees every function of torch that is called with them. The loss is known if
it calls one function in `_SUMS`, with the stand-ins or what a conversion in `_CONVERSIONS` makes of them, and returns
its value unchanged. Anything else it calls, be it to read a value, to draw or to change a tensor, makes it unknown.

A known loss is computed from whole batches by Cloister alone, by functions that treat every row by itself. Stand-ins
are zeros: a task that gets around the listener learns nothing of one record that could affect another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

    Loss = Callable[[Tensor, Tensor], Tensor]


def sum_of_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return the sum of the separate losses of records, a scalar; None if the loss is not known.

    Args:
        loss: a task's loss, the mean over a batch.
        outputs: `(n, ...)`.
        targets: `(n, ...)`.
    """
    listener = _Listener(outputs, targets)
    try:
        with listener:
            value = loss(*listener.stand_ins)
    except Exception:  # noqa: BLE001 - the loss may fail on zeros; then it is called with the records
        return None
    return listener.total if value is listener.value and listener.is_known else None


class _UnknownError(Exception):
    """Ends a loss that calls more than what is known."""


class _Listener(TorchFunctionMode):
    """A context that computes the sum of losses when the loss calls its function."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        super().__init__()
        self.stand_ins = _zeros_for_one(outputs), _zeros_for_one(targets)
        self.value: Tensor | None = None  # stands for one record's loss
        self.total: Tensor | None = None
        self.is_known = True
        self._batches = list(zip(self.stand_ins, (outputs, targets), strict=True))

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        batches, rest = [], list(args)
        while rest and (batch := self._batch_of(rest[0])) is not None:
            batches.append(batch)
            rest.pop(0)
        if self.is_known and self.value is None:
            if func in _SUMS and len(batches) == 2 and not rest:  # noqa: PLR2004 - outputs and targets
                if (total := _SUMS[func](*batches, **(kwargs or {}))) is not None:
                    value = total.new_zeros(())
                    self.total, self.value = total, value
                    return value
            elif func in _CONVERSIONS and len(batches) == 1 and not kwargs and _CONVERSIONS[func](batches[0], rest):
                stand_in: Tensor = func(*args)
                self._batches.append((stand_in, func(batches[0], *rest)))
                return stand_in
        self.is_known = False
        raise _UnknownError

    def _batch_of(self, value: object) -> Tensor | None:
        return next((batch for stand_in, batch in self._batches if stand_in is value), None)


def _zeros_for_one(batch: Tensor) -> Tensor:
    return batch.new_zeros((1, *batch.shape[1:]))


def _cross_entropy(
    outputs: Tensor, targets: Tensor, *, ignore_index: object = -100, label_smoothing: object = 0.0, **usual: object
) -> Tensor | None:
    """Return the sum for outputs `(n, classes)` and targets `(n,)` or `(n, classes)`; others are means over more."""
    classes = targets.dim() == 1 and not targets.is_floating_point()
    shares = targets.shape == outputs.shape and targets.is_floating_point()
    if outputs.dim() != 2 or not (classes or shares) or not _is_mean(usual):  # noqa: PLR2004 - records and classes
        return None
    if not isinstance(ignore_index, int) or not isinstance(label_smoothing, float):
        return None
    return functional.cross_entropy(
        outputs, targets, reduction="sum", ignore_index=ignore_index, label_smoothing=label_smoothing
    )


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    """Return the sum over records of a mean over a record's own numbers."""

    def summed(outputs: Tensor, targets: Tensor, **usual: object) -> Tensor | None:
        if targets.shape != outputs.shape or not outputs.numel() or not _is_mean(usual):
            return None
        return function(outputs, targets, reduction="sum") / outputs.shape[1:].numel()

    return summed


def _is_mean(settings: dict[str, object]) -> bool:
    """Return whether a loss is the mean, and its other settings are the default, None."""
    return settings.pop("reduction", "mean") == "mean" and all(setting is None for setting in settings.values())


_SUMS: dict[Any, Callable[..., Tensor | None]] = {
    functional.cross_entropy: _cross_entropy,
    functional.mse_loss: _elementwise(functional.mse_loss),
    functional.binary_cross_entropy_with_logits: _elementwise(functional.binary_cross_entropy_with_logits),
}


def _is_alone(batch: Tensor, arguments: list[object]) -> bool:
    del batch
    return not arguments


def _is_within_a_row(batch: Tensor, arguments: list[object]) -> bool:
    """Return whether the argument is a dimension other than the first."""
    return len(arguments) == 1 and isinstance(arguments[0], int) and -batch.dim() < arguments[0] != 0


_CONVERSIONS: dict[Any, Callable[[Tensor, list[object]], bool]] = {
    Tensor.float: _is_alone,
    Tensor.long: _is_alone,
    Tensor.squeeze: _is_within_a_row,
    torch.squeeze: _is_within_a_row,
    Tensor.unsqueeze: _is_within_a_row,
    torch.unsqueeze: _is_within_a_row,
}
"""Each with the arguments that it may have."""
