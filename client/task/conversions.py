"""Say how records become tensors of the types that a task's made-up records have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.data.inputs import Inputs

_METHODS = {
    torch.float32: "float()", torch.float64: "double()", torch.int64: "long()", torch.int32: "int()",
    torch.bool: "bool()",
}  # fmt: skip


def conversions(inputs: object, targets: object, like: tuple[Inputs, Tensor]) -> list[str]:
    """Return code that makes tensors of the right types of inputs and targets; nothing for those that have them.

    >>> like = torch.zeros(4, 2), torch.zeros(4).long()
    >>> conversions(np.zeros((3, 2)), torch.zeros(3), like)
    ['torch.from_numpy(inputs).float()', 'targets.long()']
    """
    parts = [*_pairs(inputs, like[0]), ("targets", targets, like[1])]
    return [code for name, value, wanted in parts if (code := _conversion(name, value, wanted.dtype)) is not None]


def _pairs(inputs: object, like: Inputs) -> Iterator[tuple[str, object, Tensor]]:
    if isinstance(like, Tensor):
        yield "inputs", inputs, like
    elif isinstance(like, dict) and isinstance(inputs, dict) and list(inputs) == list(like):
        yield from ((f"inputs[{name!r}]", inputs[name], like[name]) for name in like)
    elif isinstance(like, tuple) and isinstance(inputs, tuple | list) and len(inputs) == len(like):
        yield from ((f"inputs[{place}]", inputs[place], part) for place, part in enumerate(like))


def _conversion(name: str, value: object, wanted: torch.dtype) -> str | None:
    """Return code that makes a tensor of a value, or None if it is one already, or cannot become one."""
    method = _METHODS.get(wanted, f"to({wanted})")
    if isinstance(value, Tensor):
        return f"{name}.{method}" if value.dtype != wanted else None
    kind = getattr(getattr(value, "dtype", None), "kind", "f")  # of numbers; texts and objects are of others
    if kind not in "biuf":
        return None
    if isinstance(value, np.ndarray):
        return f"torch.from_numpy({name}).{method}"
    if hasattr(value, "to_numpy"):  # a data frame, or a column of one
        return f"torch.from_numpy({name}.to_numpy()).{method}"
    if isinstance(value, list | tuple) and not any(isinstance(each, str | Tensor) for each in value):
        return f"torch.tensor({name}).{method}"
    return None
