"""The layers that book-keeping knows: per-record gradients from a layer's inputs and the gradients of its outputs.

Every function here takes a layer and its calls in one forward pass. A call is a layer's input `(n, ...)` and the
gradient of the loss with respect to its output `(n, ...)`. The gradients of all calls of a layer are
added before the norm is computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from opacus.layers.dp_rnn import DPRNNBase, RNNLinear
from torch import Tensor, nn
from torch.nn import functional

from client.gradients.mode import own
from client.gradients.record_gradients import Outer, Places, Product, RecordGradients, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Call = tuple[Tensor, Tensor]
LayerGradients = list[tuple[Tensor, RecordGradients]]  # parameters, each with the records' gradients of it


def _linear(layer: nn.Linear, calls: Sequence[Call]) -> LayerGradients:
    if len(calls) == 1 and calls[0][0].dim() == 2:  # noqa: PLR2004 - one row per record, the usual case
        outer = Outer(*calls[0])
        pairs: LayerGradients = [(layer.weight, outer)]
        if layer.bias is not None:
            pairs.append((layer.bias, outer.bias))
        return pairs
    inputs, gradients = (_joined([_in_rows(call[side]) for call in calls], 1) for side in (0, 1))
    return _affine(layer, inputs.transpose(1, 2).unsqueeze(1), gradients.transpose(1, 2).unsqueeze(1))


def _in_rows(values: Tensor) -> Tensor:
    """Return `(n, ..., d)` as `(n, t, d)`."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)  # noqa: PLR2004 - records and values


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """Join the rows of several calls; a single call is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _convolution(layer: nn.Conv1d | nn.Conv2d, calls: Sequence[Call]) -> LayerGradients:
    """Return a convolution's gradients: it is a linear map of patches, with one row per position of the output."""
    inputs = _joined([_patches(layer, inputs) for inputs, _ in calls], 2)
    gradients = _joined([back.flatten(2) for _, back in calls], 2)
    return _affine(layer, inputs.unflatten(1, (layer.groups, -1)), gradients.unflatten(1, (layer.groups, -1)))


def _patches(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    """Cut inputs `(n, channels, ...)` into the kernel's patches: `(n, channels × kernel, positions)`."""
    around = layer._reversed_padding_repeated_twice  # noqa: SLF001 - as the layer itself pads
    if any(around):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = functional.pad(inputs, around, mode=mode)
    if inputs.dim() == 3:  # noqa: PLR2004 - torch cannot unfold one dimension of space: add a second
        return functional.unfold(
            inputs.unsqueeze(2), (1, *layer.kernel_size), (1, *layer.dilation), stride=(1, *layer.stride)
        )
    return functional.unfold(inputs, layer.kernel_size, layer.dilation, stride=layer.stride)


def _affine(layer: nn.Linear | nn.Conv1d | nn.Conv2d, inputs: Tensor, gradients: Tensor) -> LayerGradients:
    """Return the gradients of weight and bias, given `(n, groups, d, t)` and `(n, groups, p, t)`."""
    pairs: LayerGradients = []
    if inputs.shape[1] == inputs.shape[3] == 1:
        pairs.append((layer.weight, Outer(inputs[:, 0, :, 0], gradients[:, 0, :, 0])))
    else:
        pairs.append((layer.weight, Product(inputs, gradients)))
    if layer.bias is not None:
        pairs.append((layer.bias, Rows(gradients.sum(3) if gradients.shape[3] > 1 else gradients)))
    return pairs


def _embedding(layer: nn.Embedding, calls: Sequence[Call]) -> LayerGradients:
    indices = _joined(
        [inputs.reshape(len(inputs), -1) for inputs, _ in calls], 1
    )  # one per record may have no dimension
    gradients = _joined([_in_rows(back) for _, back in calls], 1)
    if layer.padding_idx is not None:  # that row is never trained, so its gradient belongs to no norm
        gradients = gradients.masked_fill((indices == layer.padding_idx).unsqueeze(-1), 0.0)
    return [(layer.weight, Places.looked_up(indices, gradients, layer.num_embeddings))]


def _layer_norm(layer: nn.LayerNorm, calls: Sequence[Call]) -> LayerGradients:
    last, eps = layer.normalized_shape, layer.eps
    return _scaled(layer, calls, lambda inputs: functional.layer_norm(inputs, last, eps=eps), _but_last(len(last)))


def _rms_norm(layer: nn.RMSNorm, calls: Sequence[Call]) -> LayerGradients:
    last, eps = list(layer.normalized_shape), layer.eps
    return _scaled(layer, calls, lambda inputs: functional.rms_norm(inputs, last, eps=eps), _but_last(len(last)))


def _group_norm(layer: nn.GroupNorm, calls: Sequence[Call]) -> LayerGradients:
    def over_space(rows: Tensor) -> Tensor:
        return rows.flatten(2).sum(2) if rows.dim() > 2 else rows  # noqa: PLR2004 - records and channels

    groups, eps = layer.num_groups, layer.eps
    return _scaled(layer, calls, lambda inputs: functional.group_norm(inputs, groups, eps=eps), over_space)


def _but_last(kept: int) -> Callable[[Tensor], Tensor]:
    """Return a function that sums over all dimensions but the first and the last `kept`."""
    return lambda rows: rows.flatten(1, -kept - 1).sum(1) if rows.dim() > kept + 1 else rows


def _scaled(
    layer: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm,
    calls: Sequence[Call],
    normalise: Callable[[Tensor], Tensor],
    over_rows: Callable[[Tensor], Tensor],
) -> LayerGradients:
    pairs: LayerGradients = [(layer.weight, Rows(sum(over_rows(normalise(inputs) * back) for inputs, back in calls)))]  # type: ignore[arg-type]  # never 0
    if (bias := getattr(layer, "bias", None)) is not None:
        pairs.append((bias, Rows(sum(over_rows(back) for _, back in calls))))  # type: ignore[arg-type]  # never 0
    return pairs


KNOWN: dict[type[nn.Module], Callable[[Any, Sequence[Call]], LayerGradients]] = {
    nn.Linear: _linear,
    RNNLinear: _linear,  # part of Opacus's recurrent layers, called at every time step
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}
"""Exact types only: a subclass may do anything."""


def unknown(model: nn.Module) -> str | None:
    """Return why book-keeping cannot be used for a model; None if its layers show no reason."""
    owners: dict[int, str] = {}
    for name, part in model.named_modules():
        if isinstance(part, DPRNNBase):  # it only renames its cells' parameters
            continue
        trained = own(part)
        if trained and type(part) not in KNOWN:
            return f"it does not support parameters of {type(part).__name__} ({name or 'the model itself'})"
        if trained and isinstance(part, nn.Embedding) and (part.max_norm or part.scale_grad_by_freq or part.sparse):
            return f"it does not support an embedding with max_norm, scale_grad_by_freq or sparse ({name})"
        for parameter in trained:
            if (other := owners.setdefault(id(parameter), name)) != name:
                return f"{name} and {other} share a parameter"
    return None
