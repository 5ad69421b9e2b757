"""Bring inputs and targets to the types of a task's made-up records: what `load` returns, or a simulation is given.

Tensors, arrays, columns of data frames and lists are taken, of any type of number, and numbers `(n,)` and a column
`(n, 1)` for each other. So a site takes whatever a simulation takes. Real numbers are rounded to the wanted type; whole
ones must be whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from privacy.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.data.inputs import Batch, Inputs

_ENCODE = {
    "inputs": "give arrays of numbers, padded to one shape: for categories, one column of 0 and 1 for each, or a "
    "TableTask, which has them",
    "targets": "give numbers: numpy.unique(targets, return_inverse=True)[1] numbers labels from 0",
}


def converted(values: object, like: Inputs, what: str) -> object:
    """Return values as tensors of the types of others.

    Args:
        values: `(n, ...)` each: one, or several if `like` has several.
        like: tensors `(m, ...)`.
        what: `inputs` or `targets`, for messages.

    Returns:
        Tensors in the form of `like`; what has another form is returned as it is.

    Raises:
        DataError: if values are no numbers, or none that the wanted type has; the sentence shows no value.

    >>> converted([[1, 2], [3, 4]], torch.zeros(4, 2), "inputs")
    tensor([[1., 2.],
            [3., 4.]])
    """
    if isinstance(like, Tensor):
        if values is None or isinstance(values, Dataset | Mapping | str | bytes) or _are_tensors(values):
            return values
        tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(_numbers(values, what))
        if tensor.layout != torch.strided or tensor.is_complex() or not tensor.dim():
            return tensor
        return _typed(_shaped(tensor, like), like.dtype, what)
    if isinstance(like, dict) and isinstance(values, Mapping) and set(values) == set(like):
        return {name: converted(values[name], part, what) for name, part in like.items()}
    if isinstance(like, tuple) and isinstance(values, tuple | list) and len(values) == len(like):
        return tuple(converted(*pair, what) for pair in zip(values, like, strict=True))
    return values


def changes(given: tuple[object, object], taken: Batch) -> list[str]:
    """Say which types of numbers were changed.

    >>> changes((np.zeros((3, 2)), [0, 1, 1]), (torch.zeros(3, 2), torch.zeros(3)))
    ['inputs from float64 to float32']
    """
    said = list[str]()
    for what, before, after in zip(("inputs", "targets"), given, taken, strict=True):
        names = dict.fromkeys((_type_of(one), _type_of(other)) for one, other in _pairs(before, after))
        said += [f"{what} from {old} to {new}" for old, new in names if old and old != new]
    return said


def _pairs(given: Any, taken: Inputs) -> list[tuple[object, Tensor]]:  # noqa: ANN401 - of the form of `taken`
    if isinstance(taken, Tensor):
        return [(given, taken)]
    if isinstance(taken, dict):
        return [(given[name], part) for name, part in taken.items()]
    return list(zip(given, taken, strict=True))


def _type_of(value: object) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _are_tensors(values: object) -> bool:
    """Return whether these are the inputs of a model that takes several, where one is wanted."""
    return isinstance(values, tuple) and any(isinstance(each, Tensor) for each in values)


def _shaped(tensor: Tensor, like: Tensor) -> Tensor:
    """Make a column of numbers `(n,)`, as many losses want, or the other way round."""
    if tensor.dim() == 1 and like.dim() == 2 and like.shape[1] == 1:  # noqa: PLR2004 - a column
        return tensor.unsqueeze(1)
    if tensor.dim() == 2 and like.dim() == 1 and tensor.shape[1] == 1:  # noqa: PLR2004 - a column
        return tensor.squeeze(1)
    return tensor


def _typed(tensor: Tensor, wanted: torch.dtype, what: str) -> Tensor:
    """Return a tensor of another type.

    Raises:
        DataError: if that changes more than the precision of a number.
    """
    if tensor.dtype == wanted:
        return tensor
    result = tensor.to(wanted)
    if not wanted.is_floating_point:
        odd = (result.to(tensor.dtype) != tensor).reshape(len(tensor), -1).any(1)  # of NaN, too
        if odd.any():
            whose = f" of record {int(odd.nonzero()[0]) + 1}" if len(tensor) > 1 else ""
            kind = "0 or 1" if wanted == torch.bool else "whole numbers in the range of its type"
            name = str(wanted).removeprefix("torch.")
            msg = f"the {what}{whose} are not {kind}, but example() has {name} there; correct one of the two"
            raise DataError(msg)
    return result


def _numbers(values: Any, what: str) -> NDArray[Any]:  # noqa: ANN401 - whatever NumPy takes
    """Return an array of numbers.

    Raises:
        DataError: if there are others; says how to make numbers of them.
    """
    if np.ma.is_masked(values):
        msg = f"the {what} are a masked array, in which values are missing; give others for them: filled(…)"
        raise DataError(msg)
    if hasattr(values, "toarray"):
        msg = f"the {what} are a sparse matrix; give a dense one: toarray()"
        raise DataError(msg)
    try:
        array = np.ascontiguousarray(values)
        if array.dtype == object:  # a data frame's, if its columns are of several types
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"the {what} cannot be read as numbers of one shape; {_ENCODE[what]}"
        raise DataError(msg) from error
    if array.dtype.kind not in "biuf":
        msg = f"the {what} are no numbers ({array.dtype}); {_ENCODE[what]}"
        raise DataError(msg)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # with which torch hardly computes
        return array.astype(np.int64)
    if array.dtype.itemsize > np.dtype(np.float64).itemsize:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
