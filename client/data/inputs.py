"""Inputs of a model: one tensor, a tuple, or a dict of tensors, each `(n, ...)`. The model is called accordingly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from collections.abc import Callable

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""`(n, ...)` each; the first dimension counts records."""

Batch = tuple[Inputs, Tensor]
"""Inputs and targets `(n, ...)` of some records."""

Persons = Sequence[int] | Sequence[str] | Tensor | NDArray[Any]
"""For each record, the person whom it is about `(n,)`: whole numbers or texts."""

Loaded = Batch | tuple[Inputs, Tensor, Persons] | Dataset[Any] | tuple[Dataset[Any], Persons]
"""What a task's `load` may return."""


def as_inputs(value: object) -> Inputs | None:
    """Return what a task calls inputs in one of the three forms; None if it is something else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        named = {key: value for key, value in value.items() if isinstance(key, str) and isinstance(value, Tensor)}
        return named if value and len(named) == len(value) else None
    if isinstance(value, tuple | list) and value and all(isinstance(part, Tensor) for part in value):
        return tuple(value)
    return None


def mapped(function: Callable[..., Tensor], first: Inputs, *others: Inputs) -> Inputs:
    """Apply a function to every tensor, together with the tensors of the same place in others of the same form."""
    rest: Any = others  # of the same form
    if isinstance(first, Tensor):
        return function(first, *rest)
    if isinstance(first, dict):
        return {name: function(tensor, *(other[name] for other in rest)) for name, tensor in first.items()}
    return tuple(function(*same_place) for same_place in zip(first, *rest, strict=True))


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors, in order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors by name for messages: `inputs`, or for example `input 2` or `` input `mask` ``."""
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    if isinstance(inputs, dict):
        return {f"input `{name}`": tensor for name, tensor in inputs.items()}
    return {f"input {number}": tensor for number, tensor in enumerate(inputs, 1)}


def count(inputs: Inputs) -> int:
    """Return the number of records."""
    return tensors(inputs)[0].shape[0]


def device_of(inputs: Inputs) -> torch.device:
    """Return the device on which the inputs are."""
    return tensors(inputs)[0].device


def rows(inputs: Inputs, chosen: Tensor | slice) -> Inputs:
    """Return the inputs of some records: indices `(k,)`, booleans `(n,)`, or a slice."""
    return mapped(lambda tensor: tensor[chosen], inputs)


def singles(inputs: Inputs) -> list[Inputs]:
    """Return each record's inputs, as a batch of one."""
    return [rows(inputs, slice(number, number + 1)) for number in range(count(inputs))]


def move(inputs: Inputs, device: torch.device) -> Inputs:
    """Return the inputs on a device."""
    return mapped(lambda tensor: tensor.to(device), inputs)


def copied(inputs: Inputs) -> Inputs:
    """Return a copy, which a model may change."""
    return mapped(Tensor.clone, inputs)


def joined(parts: list[Inputs]) -> Inputs:
    """Return the records of several batches as one."""
    return mapped(lambda *group: torch.cat(group), *parts)


def call(model: Callable[..., Any], inputs: Inputs) -> Any:  # noqa: ANN401 - whatever the model returns
    """Call a model with the tensor, `*tuple` or `**dict`."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)
