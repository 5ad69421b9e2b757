"""The parts of a model: trained parameters, shared or local, and constants, which do not change.

    shared    Parameters with `requires_grad`. They are differentiated, clipped, noised, charged and sent.
    local     Parameters with `requires_grad` whose names the task's `local` matches. They are trained in the same noisy
              steps, and stay at the site.
    constant  Parameters without it (a frozen backbone, the base under an adapter), and buffers (position ids,
              normalisation constants). They never leave the site, but must be the same at all sites: they are in the
              layout's digest, and in the model's files.

Names are those of `state_dict`, so that `load_state_dict` accepts a model's file. A tensor with two names (tied
weights) appears once, under its first name.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch

from privacy.codec.update import Constant, Layout, Update
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from privacy.codec.update import Model, Shapes

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Each type's name in a safetensors file."""
WIDTHS = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, each once: parameters first, in the order of `named_parameters`."""
    known = {id(tensor): name for name, tensor in reversed(_saved(module).items())}
    held: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {known.get(id(tensor), name): tensor for name, tensor in held.items()}


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Return the trained parameters by name."""
    return {name: tensor for name, tensor in tensors_of(module).items() if tensor.requires_grad}


def shared(module: nn.Module, local: Sequence[str]) -> dict[str, Tensor]:
    """Return the trained parameters that are sent, by name."""
    return {name: tensor for name, tensor in trained(module).items() if not matches(name, local)}


def kept(module: nn.Module, local: Sequence[str]) -> dict[str, Tensor]:
    """Return the trained parameters that stay at the site, by name."""
    return {name: tensor for name, tensor in trained(module).items() if matches(name, local)}


def shapes_of(module: nn.Module) -> Shapes:
    """Return the names and shapes of all trained parameters."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in trained(module).items())


def kept_values(module: nn.Module, local: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return a copy of the trained parameters that stay at the site.

    Raises:
        MalformedError: if a value is not finite.
    """
    own = {name: np.array(tensor.detach().cpu().numpy()) for name, tensor in kept(module, local).items()}
    for array in own.values():
        Update(array.reshape(-1))
    return own


def drained(module: nn.Module, layout: Layout) -> NDArray[np.float32]:
    """Move a module's shared parameters into a vector `(size,)`, so that memory need not hold both."""
    vector, start, held = np.empty(layout.size, dtype=np.float32), 0, tensors_of(module)
    for name, _ in layout.shapes:
        parameter = held[name]
        place = slice(start, start := start + parameter.numel())
        vector[place] = parameter.detach().cpu().numpy().reshape(-1)
        parameter.data = parameter.new_empty(0)
    return vector


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a parameter's name matches one of these patterns of `fnmatch`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def layout_of(module: nn.Module, local: Sequence[str] = ()) -> Layout:
    """Return the names and shapes of trained parameters, and a copy of the constants.

    Args:
        module: the task's model.
        local: patterns of the parameters that stay at the site, as `fnmatch` reads them.
    """
    shapes, own = (
        tuple((name, tuple(tensor.shape)) for name, tensor in part.items())
        for part in (shared(module, local), kept(module, local))
    )
    saved = {id(tensor) for tensor in _saved(module).values()}
    constants = tuple(
        Constant.of(name, DTYPES[tensor.dtype], tuple(tensor.shape), bytes_of(tensor).copy(), saved=id(tensor) in saved)
        for name, tensor in tensors_of(module).items()
        if not tensor.requires_grad
    )
    return Layout(shapes, constants, own)


def set_constants(module: nn.Module, layout: Layout) -> None:
    """Copy a layout's constants into a module on the CPU."""
    held = tensors_of(module)
    with torch.no_grad():
        for constant in layout.constants:
            if constant.values.size:
                tensor = held[constant.name]
                tensor.copy_(torch.from_numpy(constant.values).view(tensor.dtype).view(constant.shape))


def set_tensors(module: nn.Module, model: Model) -> None:
    """Copy a model, with the site's own parameters if it has them, into a module on the CPU."""
    held = tensors_of(module)
    with torch.no_grad():
        for name, values in (*model.layout.unflatten(model.vector).items(), *model.local.items()):
            held[name].copy_(torch.from_numpy(np.array(values)))
    set_constants(module, model.layout)


def check_constants(module: nn.Module, layout: Layout) -> None:
    """Refuse a module whose constants differ from its layout's.

    Raises:
        TaskError: names a constant that has changed.
    """
    held = tensors_of(module)
    for constant in layout.constants:
        if not np.array_equal(bytes_of(held[constant.name]), constant.values):
            msg = (
                f"training changed `{constant.name}` of the model, which is neither clipped nor shared; make it a "
                "parameter with requires_grad=True, or do not change it"
            )
            raise TaskError(msg)


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors in `state_dict` by name: all but buffers with `persistent=False`."""
    return {
        name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)
    }


def bytes_of(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the bytes of a tensor, without a copy if it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    data: np.ndarray[tuple[int], np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return data
