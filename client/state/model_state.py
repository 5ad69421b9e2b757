"""What a model is made of: what is trained and travels, and what stays as it is.

    trained   parameters with `requires_grad`. They are differentiated, clipped, noised, charged and sent.
    constant  parameters without it (a frozen backbone, the base under an adapter), and buffers (position ids, constants
              to normalise with). They never leave the site, but all sites must have the same ones: they are in the
              layout's digest, and in the model's files.

Names are those of `state_dict`, so that `load_state_dict` takes a model's file. A tensor with two names (tied weights)
is there once, under its first one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from privacy.codec.update import Constant, Layout
from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor, nn

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.complex64: "C64",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What a safetensors file calls each type of number."""
WIDTHS = {name: dtype.itemsize for dtype, name in DTYPES.items()}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, each once: parameters first, in the order of `named_parameters`."""
    known = {id(tensor): name for name, tensor in reversed(_saved(module).items())}
    held: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {known.get(id(tensor), name): tensor for name, tensor in held.items()}


def trained(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name."""
    return {name: tensor for name, tensor in tensors_of(module).items() if tensor.requires_grad}


def layout_of(module: nn.Module) -> Layout:
    """Return names and shapes of what is trained, and a copy of all else."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in trained(module).items())
    saved = {id(tensor) for tensor in _saved(module).values()}
    constants = tuple(
        Constant.of(name, DTYPES[tensor.dtype], tuple(tensor.shape), bytes_of(tensor).copy(), saved=id(tensor) in saved)
        for name, tensor in tensors_of(module).items()
        if not tensor.requires_grad
    )
    return Layout(shapes, constants)


def set_constants(module: nn.Module, layout: Layout) -> None:
    """Give a module on the CPU the constants of a layout."""
    held = tensors_of(module)
    with torch.no_grad():
        for constant in layout.constants:
            if constant.values.size:
                tensor = held[constant.name]
                tensor.copy_(torch.from_numpy(constant.values).view(tensor.dtype).view(constant.shape))


def check_constants(module: nn.Module, layout: Layout) -> None:
    """Refuse a module whose constants are not those of its layout any more.

    Raises:
        TaskError: naming one that has changed.
    """
    held = tensors_of(module)
    for constant in layout.constants:
        if not np.array_equal(bytes_of(held[constant.name]), constant.values):
            msg = (
                f"training changed `{constant.name}` of the model, which is neither clipped nor shared; make it a "
                "parameter with requires_grad=True, or leave it as it is"
            )
            raise TaskError(msg)


def _saved(module: nn.Module) -> dict[str, Tensor]:
    """Return what `state_dict` says, by its names; all but buffers with `persistent=False`."""
    return {name: each for name, each in module.state_dict(keep_vars=True).items() if isinstance(each, torch.Tensor)}


def bytes_of(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the bytes of a tensor; of one on the CPU, no copy."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    found: np.ndarray[tuple[int], np.dtype[np.uint8]] = flat.view(torch.uint8).numpy()
    return found
