"""Say which form tensors have: their types and shapes."""

from __future__ import annotations

from torch import Tensor

from client.data.inputs import as_inputs, named


def form_of(part: object) -> str:
    """Return the type and shape of a tensor, or of each of several."""
    inputs = as_inputs(part)
    if inputs is None or isinstance(inputs, Tensor):
        return one_form(part)
    forms = [f"{name.removeprefix('input ')} {one_form(tensor)}" for name, tensor in named(inputs).items()]
    return f"({', '.join(forms)})"


def one_form(part: object) -> str:
    """Return a tensor's type and shape, with n for the first dimension, which counts records; for others, the type.

    >>> one_form(Tensor([[1, 2], [3, 4]]))
    'float32 (n, 2)'
    """
    if not isinstance(part, Tensor):
        return f"a {type(part).__module__}.{type(part).__name__}"
    shape = ", ".join(("n", *(str(size) for size in part.shape[1:]))) if part.dim() else ""
    return f"{str(part.dtype).removeprefix('torch.')} ({shape}{',' * (part.dim() == 1)})"
