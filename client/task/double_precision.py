"""Repeat a comparison in double precision, to tell rounding from records that interact.

A model that divides by small differences, or solves equations, may amplify the rounding of float32 until it looks like
an interaction. In double precision its rounding shrinks by nine digits, while an interaction stays. So where batches
differ in float32, the same batches are compared again: every operation, forward and backward, then computes with
float64 in place of float32, whatever the task asks for, and draws what it drew before. The tolerances are smaller too.
Only the precision changes, not the range: what is infinite or zero in float32 is so here, as records that meet only
where numbers overflow or vanish do meet in training.

What computes in 16 bits or fewer, reads the bits of numbers, or writes to float32 tensors that are neither parameters
nor buffers is not repeated: the first result stands.

A model may be another function in float64, such as one with a kernel for float32 alone. So there must be some rounding
to amplify: with noise of a few roundings of float32 in all that operations read, the batches have to differ again.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from client.dpsgd.torch_draws import LightMode
from client.state.model_parts import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.task.probe import Probe

STRICTER = 1e-2
"""By this factor, tolerances are smaller than in float32."""

_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
_NARROWER = {wide: narrow for narrow, wide in _WIDER.items()}
_LIMIT = 1e307
_LARGEST = torch.finfo(torch.float32).max


@contextmanager
def in_double(probe: Probe, noise: float = 0.0, seed: int = 0) -> Iterator[Probe]:
    """Compute in double precision within this context, with the probe that it yields; the model gets its weights back.

    With `noise`, everything that an operation reads is multiplied by a number from [1 - noise, 1 + noise], which `seed`
    decides. What cannot be computed so fails with the probe's `TaskError`.
    """
    kept = {name: tensor.data for name, tensor in tensors_of(probe.module).items() if tensor.dtype in _WIDER}
    try:
        _set(probe, {name: data.to(_WIDER[data.dtype]) for name, data in kept.items()})
        with _Double(noise, seed):
            yield replace(probe, number=torch.float64)
    finally:
        _set(probe, kept)


def _set(probe: Probe, values: dict[str, Tensor]) -> None:
    held = tensors_of(probe.module)
    for name, data in values.items():
        held[name].data = data


class _Double(LightMode):
    """A context in which operations compute with float64 in place of float32."""

    def __init__(self, noise: float, seed: int) -> None:
        super().__init__()
        self._noise, self._draw = noise, torch.Generator().manual_seed(seed)

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, options = func.overloadpacket.__name__, kwargs or {}
        changed = [args[0]] if name.endswith("_") and args else [options["out"]] if "out" in options else []
        _each(_repeatable, (args, options))
        if torch.Tag.nondeterministic_seeded in func.tags:
            drawn = func(*_each(_narrower, args), **_each(_narrower, options))
            return changed[0].copy_(drawn) if changed else _each(_wider, drawn)
        if any(_wider(value) is not value for value in changed) or (
            name == "view" and isinstance(args[1], torch.dtype)
        ):
            msg = "this cannot be repeated in double precision"
            raise TypeError(msg)
        wide, wide_options = _each(_wider, args), _each(_wider, options)
        if self._noise and not changed and not func.is_view:
            wide = _each(self._rounded, wide)
        outputs = func(*wide, **wide_options)
        _each(_repeatable, outputs)
        outputs = outputs if changed else _each(_wider, outputs)
        _each(_keep_range, outputs)
        return outputs

    def _rounded(self, value: Any) -> Any:  # noqa: ANN401 - arguments of any kind
        if not isinstance(value, Tensor) or value.dtype is not torch.float64 or value.layout is not torch.strided:
            return value
        drawn = torch.rand(value.shape, generator=self._draw, dtype=value.dtype).to(value.device)
        return value * drawn.mul_(2 * self._noise).add_(1 - self._noise)


def _each(function: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401 - arguments of any kind
    if isinstance(value, list | tuple):
        return type(value)(_each(function, part) for part in value)
    if isinstance(value, dict):
        return {name: _each(function, part) for name, part in value.items()}
    return function(value)


def _wider(value: Any) -> Any:  # noqa: ANN401 - arguments of any kind
    return _as(value, _WIDER)


def _narrower(value: Any) -> Any:  # noqa: ANN401 - arguments of any kind
    return _as(value, _NARROWER) if isinstance(value, Tensor) else value


def _as(value: Any, types: dict[torch.dtype, torch.dtype]) -> Any:  # noqa: ANN401 - arguments of any kind
    if isinstance(value, torch.dtype):
        return types.get(value, value)
    if isinstance(value, Tensor) and value.dtype in types:
        return value.to(types[value.dtype])
    return value


def _keep_range(value: Any) -> None:  # noqa: ANN401 - results of any kind
    """Put infinity or zero into a float64 tensor where float32 has it; float64's own limits are masks, and stay."""
    if not isinstance(value, Tensor) or value.dtype is not torch.float64 or value.layout is not torch.strided:
        return
    if not value.numel():
        return
    narrow, (low, high) = value.float(), value.aminmax()
    if low >= -_LARGEST and high <= _LARGEST and not ((narrow == 0) != (value == 0)).any():
        return  # as nearly always, in a fraction of the time
    lost = (narrow.isinf() & (value.abs() < _LIMIT)) | ((narrow == 0) & (value != 0))
    if lost.any():
        value.copy_(torch.where(lost, narrow, value))


def _repeatable(value: Any) -> None:  # noqa: ANN401 - arguments of any kind
    """Refuse floating-point numbers of 16 bits and fewer.

    Raises:
        TypeError: if it is one, or its type.
    """
    kind = value.dtype if isinstance(value, Tensor) else value
    if isinstance(kind, torch.dtype) and kind.is_floating_point and kind.itemsize < torch.float32.itemsize:
        msg = f"{kind} cannot be repeated in double precision"
        raise TypeError(msg)
