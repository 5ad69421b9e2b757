"""Check that the records of a batch do not affect each other's outputs in the model.

DP-SGD clips each record's own gradient. The check replaces one record by another. If any other record's output changes,
even in its last bit, then a record also enters other records' gradients, and clipping does not bound its influence. The
check does not depend on how records interact: batch normalisation, its functional form, a mean, attention over the
wrong dimension.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.data.inputs import Inputs, copied, count, mapped, rows, tensors
from client.dpsgd.torch_draws import Draws, seed_cpu
from client.task.double_precision import STRICTER, in_double
from client.task.probe import same
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.task.probe import Probe

REMEMBERS = (
    "its model remembers earlier batches, or draws from another generator than torch's default; let its outputs depend "
    "only on its inputs, its parameters and that generator, and change neither inputs nor parameters"
)
_SEEDS = 40  # for a random model: records that interact in one batch of ten escape one guard in sixty
_ROUNDING = 1e-6  # relative to the largest output
_CLOSE = 1e-3  # relative to the largest output: in batches of other sizes, kernels add in another order


def check_independence(probe: Probe, inputs: Inputs) -> None:
    """Refuse a model in which records affect each other's outputs.

    Raises:
        TaskError: names the layer, and what to use in its place.
    """
    with torch.no_grad():
        outputs = probe.outputs(copied(inputs))
        for record in (0, count(inputs) - 1):
            for replaced, outputs_after in _replacements(probe, inputs, record):
                kept = _but(record, inputs)
                if not _differ(outputs, outputs_after, kept):
                    continue
                if not same(outputs, probe.outputs(copied(inputs))):
                    raise TaskError(REMEMBERS)
                if not _rounded(probe, (inputs, replaced), kept):
                    raise TaskError(explained(probe, inputs, replaced, kept) or _MEET)


def check_chance(probe: Probe, inputs: Inputs) -> None:
    """Refuse a model in which records affect each other at random, in some batches only.

    Raises:
        TaskError: if they do, or if the model uses a random generator other than torch's.
    """
    others = random.getstate(), repr(np.random.get_state())  # noqa: NPY002 - a task may use it
    seed_cpu(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        probe.outputs(copied(inputs))
        if others != (random.getstate(), repr(np.random.get_state())):  # noqa: NPY002
            msg = "its model does not draw from torch's default generator; use only that one, which can be checked"
            raise TaskError(msg)
        if torch.equal(before, torch.get_rng_state()):
            return
        for seed in range(1, _SEEDS):
            replaced = next(_replacements(probe, inputs, 0, seed))[1]
            if _differ(probe.outputs(copied(inputs), seed), replaced, _but(0, inputs)):
                msg = f"its model mixes the records of some batches, at random; {_GENERAL} in any batch"
                raise TaskError(msg)


def check_place(probe: Probe, inputs: Inputs) -> None:
    """Refuse a model whose output for a record depends on the record's place in the batch, or on the batch's size.

    Batches vary in size, and an added record shifts the others.

    Raises:
        TaskError: if it does.
    """
    probe.module.eval()  # without dropout, which draws by place
    check_independence(probe, inputs)
    with torch.no_grad():
        draws = not same(probe.outputs(copied(inputs)), probe.outputs(copied(inputs), seed=1))
        if (
            not draws
            and not _keeps_place(probe, inputs, _CLOSE)
            and not _in_double(probe, lambda double: _keeps_place(double, inputs, _CLOSE * STRICTER))
        ):
            msg = (
                "its model gives a record a different output in another batch; use neither the number of records "
                "nor their place, and batch_first=True for sequences"
            )
            raise TaskError(msg)
    probe.module.train()


def _keeps_place(probe: Probe, inputs: Inputs, close: float) -> bool:
    """Return whether outputs are close to those of the first and the last record alone, and of the records reversed."""
    outputs = probe.outputs(copied(inputs))
    batches = [copied(rows(inputs, part)) for part in (slice(1), slice(-1, None))]
    first, last, turned = (probe.outputs(batch) for batch in (*batches, mapped(lambda tensor: tensor.flip(0), inputs)))
    bound, lenient = close * outputs.abs().max(), probe.number is torch.float32
    for one, other in ((first, outputs[:1]), (last, outputs[-1:]), (turned.flip(0), outputs)):
        if one.shape != other.shape:
            return False
        apart = (one - other).abs().max()
        if not (apart <= bound or (lenient and apart.isnan())):  # the loss tells of what is not finite
            return False
    return True


def _in_double(probe: Probe, holds: Callable[[Probe], bool]) -> bool:
    """Return whether something holds in double precision; False if that cannot be computed."""
    try:
        with in_double(probe) as double:
            return holds(double)
    except TaskError:
        return False


def _replacements(probe: Probe, inputs: Inputs, record: int, seed: int = 0) -> Iterator[tuple[Inputs, Tensor]]:
    """Yield the batch with one record replaced, and its outputs.

    The replacement is another made-up record; then, for real numbers, also larger values than any record has.
    """
    others = (row for row in range(count(inputs)) if not same(_one(inputs, row), _one(inputs, record)))
    replaced = mapped(partial(_replaced, record=record, by=next(others)), inputs)
    yield replaced, probe.outputs(copied(replaced), seed)
    if any(tensor.is_floating_point() for tensor in tensors(inputs)):
        for factor in (8.0, -8.0):
            replaced = mapped(partial(_enlarged, record=record, factor=factor), inputs)
            changed = None
            with suppress(TaskError):  # a model need not accept it
                changed = probe.outputs(copied(replaced), seed)
            if changed is not None:
                yield replaced, changed


def _replaced(values: Tensor, record: int, by: int) -> Tensor:
    values = values.clone()
    values[record] = values[by]
    return values


def _enlarged(values: Tensor, record: int, factor: float) -> Tensor:
    values = values.clone()
    if values.is_floating_point():
        values[record] = values[record] * factor + factor / 8
    return values


def _one(inputs: Inputs, row: int) -> Inputs:
    return rows(inputs, slice(row, row + 1))


def _rounded(probe: Probe, batches: tuple[Inputs, Inputs], kept: Tensor) -> bool:
    """Return whether a difference may be rounding, in layers whose number of rows varies (mixtures of experts)."""
    one, other = ([part.shape for call in _calls(probe, batch, 0) for part in call.inputs] for batch in batches)

    def close(probe: Probe) -> bool:
        before, after = (probe.outputs(copied(batch))[kept] for batch in batches)
        return bool((before - after).abs().max() <= _ROUNDING * before.abs().max())

    return one != other and (close(probe) or _in_double(probe, close))


@dataclass(frozen=True)
class _Call:
    """One call of a layer, with its inputs and outputs."""

    name: str
    layer: nn.Module
    inputs: list[Tensor]
    outputs: list[Tensor]


def explained(probe: Probe, inputs: Inputs, replaced: Inputs, kept: Tensor, seed: int = 0) -> str:
    """Name the first layer in which records that are the same in two batches differ; return "" if there is none.

    Args:
        probe: runs the model.
        inputs: one batch, `(n, ...)`.
        replaced: another batch, `(n, ...)`.
        kept: which records are the same in both, `(n,)` booleans.
        seed: seed of random draws.
    """
    with torch.no_grad():
        if not same(probe.outputs(copied(inputs), seed), probe.outputs(copied(inputs), seed)):
            return REMEMBERS
        with Draws() as draws:
            probe.outputs(copied(inputs), seed)
        if draws.by_rejection:
            return (
                "its model draws gamma, beta, Dirichlet, Poisson or binomial numbers, for which one record takes "
                "more from torch's generator than another and shifts the draws of the next; transform normal or "
                "uniform numbers"
            )
        for one, other in zip(_calls(probe, inputs, seed), _calls(probe, replaced, seed), strict=False):
            if any(_differ(a, b, kept) for a, b in zip(one.outputs, other.outputs, strict=False)):
                before = any(_differ(a, b, kept) for a, b in zip(one.inputs, other.inputs, strict=False))
                kind = type(one.layer).__name__
                if one.layer is probe.module and list(one.layer.children()):
                    return f"the forward() of its model ({kind}) mixes the records of a batch; {_GENERAL}"
                place = f"`{one.name}` ({kind})" if one.name else kind
                if before:
                    return f"its model mixes the records of a batch before {place}; {_GENERAL}"
                return f"its model's layer {place} mixes the records of a batch; {_remedy(one.layer)}"
    return ""


_GENERAL = "compute each record by itself: no mean, sum, norm, sort or attention over dimension 0"
_MEET = f"its model mixes the records of a batch; {_GENERAL}"


def _remedy(layer: nn.Module) -> str:
    if isinstance(layer, _BatchNorm):
        return f"use GroupNorm or LayerNorm, for example nn.GroupNorm(1, {layer.num_features})"
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm):  # noqa: SLF001 - has no public name
        return "use it with track_running_stats=False"
    if getattr(layer, "batch_first", True) is False:
        return "set batch_first=True, with the records in dimension 0"
    return _GENERAL


def _calls(probe: Probe, inputs: Inputs, seed: int) -> list[_Call]:
    """Return all calls of layers, in order."""
    calls: list[_Call] = []
    names = {layer: name for name, layer in probe.module.named_modules()}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:  # noqa: ANN401 - whatever layers pass
        calls.append(_Call(names[layer], layer, _tensors((args, kwargs)), _tensors(output)))

    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in names]
    try:
        probe.outputs(copied(inputs), seed)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.clone()]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def _but(record: int, inputs: Inputs) -> Tensor:
    return torch.arange(count(inputs)) != record


def _differ(one: Tensor, other: Tensor, kept: Tensor) -> bool:
    """Return whether rows of kept records differ, along whichever dimension counts records; False if none does."""
    if one.shape != other.shape or not one.dim():
        return False
    size = len(kept)
    at = next((place for place, length in enumerate(one.shape) if length == size), None)
    if at is None and len(one) and len(one) % size == 0:
        one, other, at = one.reshape(size, -1), other.reshape(size, -1), 0
    if at is None:
        return False
    return not same(one.movedim(at, 0)[kept], other.movedim(at, 0)[kept])
