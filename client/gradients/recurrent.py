"""Make torch's recurrent layers work under `torch.func.vmap`.

A GRU adds each record's values to its state in place. If the state starts as zeros that depend on no record, vmap keeps
one state for all records, and the addition fails. So each record gets zeros of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


def begin_by_record(model: nn.Module) -> list[RemovableHandle]:
    """Give each record its own initial state, with the same values. LSTMs do not need it."""
    return [
        part.register_forward_pre_hook(_begin, with_kwargs=True)
        for part in model.modules()
        if isinstance(part, nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell)
    ]


def _begin(
    layer: nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    arguments = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    inputs, state = arguments.get("input"), arguments.get("hx")
    if not isinstance(inputs, Tensor):  # packed sequences cannot be mapped over records
        return None
    if state is None:
        state = inputs.new_zeros(_shape(layer, inputs))
    return (inputs, state + torch.zeros_like(inputs.flatten()[0], dtype=state.dtype)), {}


def _shape(layer: nn.GRU | nn.RNN | nn.GRUCell | nn.RNNCell, inputs: Tensor) -> tuple[int, ...]:
    """Return a state's shape: `(layers, n, hidden)`, for a cell `(n, hidden)`; without n for a single record."""
    if isinstance(layer, nn.RNNCellBase):
        return (*inputs.shape[:-1], layer.hidden_size)
    layers = layer.num_layers * (1 + layer.bidirectional)
    records = inputs.shape[0 if layer.batch_first else 1 : 1 if layer.batch_first else 2] if inputs.dim() > 2 else ()  # noqa: PLR2004 - one record has time and values
    return (layers, *records, layer.hidden_size)
