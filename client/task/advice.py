"""Say what to write instead, where a model or a loss fails on records that a task makes up.

Torch's own messages speak of matrices and types, not of the task. So the usual changes are tried, and the first with
which the model or the loss works is the advice. If none does, a layer that gets another size than it takes is named.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from client.data.inputs import Inputs, call, count, tensors
from client.task.forms import form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.task.task import Task

_MOST = 4  # inputs of a model, of which all changes are tried
_Change = tuple["Callable[[Tensor], Tensor]", str]  # and how it is written

_KEPT: _Change = (lambda part: part, "")
_FLOAT: _Change = (lambda part: part.float(), ".float()")
_LONG: _Change = (lambda part: part.long(), ".long()")
_COLUMN: _Change = (lambda part: part.unsqueeze(1), ".unsqueeze(1)")
_ROW: _Change = (lambda part: part.squeeze(1), ".squeeze(1)")
_FLAT: _Change = (lambda part: part.flatten(1), ".flatten(1)")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORMS = {
    1: ("n", "channels", "length"),
    2: ("n", "channels", "height", "width"),
    3: ("n", "channels", "depth", "height", "width"),
}


def advice_on_model(module: nn.Module, inputs: Inputs) -> str | None:
    """Return what is wrong with a model that fails on made-up inputs, and what to write; None if that is not known."""
    parts = tensors(inputs)
    names = (
        ["inputs"] if isinstance(inputs, Tensor)
        else [f"inputs[{name!r}]" for name in (inputs if isinstance(inputs, dict) else range(len(inputs)))]
    )  # fmt: skip
    options = [[_KEPT, *_types_of(part)] for part in parts]
    tries = sorted(product(*options), key=lambda changes: sum(each is not _KEPT for each in changes))[1:]
    if len(parts) == 1:
        tries += [(each,) for each in (_COLUMN, _FLAT)]
    for changes in tries if len(parts) <= _MOST else ():
        with suppress(Exception), torch.no_grad():
            changed = [change(part) for (change, _), part in zip(changes, parts, strict=True)]
            if _has_rows(call(module, _like(inputs, changed)), count(inputs)):
                codes = [f"{name}{code}" for name, (_, code) in zip(names, changes, strict=True) if code]
                return (
                    f"its model cannot compute with inputs {form_of(inputs)}, as its example() makes them up; return "
                    f"{' and '.join(codes)} from example() and load() instead"
                )
    return _on_layer(module, inputs)


def advice_on_loss(task: Task, outputs: Tensor, targets: Tensor, failure: BaseException | None) -> str | None:
    """Return what is wrong with a loss that fails on made-up targets, and what to write; None if that is not known.

    Args:
        task: whose loss it is.
        outputs: of its model, `(n, ...)`.
        targets: `(n, ...)`.
        failure: what it raised.
    """
    if isinstance(failure, IndexError):
        return _on_classes(outputs, targets)
    shapes = [_KEPT, *([_COLUMN] if targets.dim() == 1 else [_ROW] if targets.dim() == 2 else [])]  # noqa: PLR2004
    both = f"outputs {form_of(outputs)} and targets {form_of(targets)}"
    for shape, kind in product(shapes, [_KEPT, *_types_of(targets)]):
        if _works(task, outputs, kind[0](shape[0](targets))):
            return (
                f"its loss() cannot compute with {both}, as its model and its example() make them; return "
                f"targets{kind[1]}{shape[1]} from example() and load() instead"
            )
    column = targets.float().reshape(len(targets), -1)
    if _works(task, outputs.sigmoid(), targets) or _works(task, outputs.sigmoid(), column):
        return (
            f"its loss() takes probabilities, but its model returns any number, {form_of(outputs)}; write "
            "functional.binary_cross_entropy_with_logits(outputs, targets) in loss()"
        )
    if outputs.dim() == targets.dim() == 2 and outputs.shape[1] != targets.shape[1]:  # noqa: PLR2004 - rows
        return f"its loss() cannot compute with {both}; give the model {targets.shape[1]} outputs in model()"
    return None


def advice_on_outputs(outputs: object, rows: int) -> str:
    """Return how to write the one tensor that a model should return, if it is among what it returns; else "".

    >>> advice_on_outputs((torch.zeros(5, 2), torch.zeros(1)), 5)
    ', for example outputs[0]'
    """
    held: Any = outputs
    if isinstance(logits := getattr(outputs, "logits", None), Tensor) and _has_rows(logits, rows):
        return ", for example outputs.logits"
    pairs: list[tuple[object, object]] = []
    if isinstance(outputs, dict):
        pairs = sorted(held.items(), key=lambda pair: pair[0] != "logits")
    elif isinstance(outputs, tuple | list):
        pairs = list(enumerate(held))
    return next((f", for example outputs[{name!r}]" for name, part in pairs if _has_rows(part, rows)), "")


def _types_of(part: Tensor) -> list[_Change]:
    """Return the changes to the other types that layers and losses take."""
    return [change for change, dtype in ((_FLOAT, torch.float32), (_LONG, torch.int64)) if part.dtype != dtype]


def _like(inputs: Inputs, parts: list[Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return parts[0]
    return dict(zip(inputs, parts, strict=True)) if isinstance(inputs, dict) else tuple(parts)


def _has_rows(outputs: object, rows: int) -> bool:
    return isinstance(outputs, Tensor) and outputs.dtype == torch.float32 and outputs.dim() > 0 and len(outputs) == rows


def _works(task: Task, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss, and its gradient, can be computed."""
    with suppress(Exception), torch.enable_grad():
        variable = outputs.detach().clone().requires_grad_()
        loss: object = task.loss(variable, targets)
        if isinstance(loss, Tensor) and loss.dim() == 0 and bool(loss.isfinite()):
            torch.autograd.grad(loss, variable)
            return True
    return False


def _on_classes(outputs: Tensor, targets: Tensor) -> str | None:
    """Return what is wrong if there are more classes than outputs."""
    if outputs.dim() != 2 or targets.is_floating_point() or targets.numel() != len(outputs):  # noqa: PLR2004 - logits
        return None
    most, has = int(targets.max()), outputs.shape[1]
    if most < has or int(targets.min()) < 0:
        return None
    advice = f"give the model {most + 1} outputs in model()"
    if has == 1:
        advice += (
            ", or write functional.binary_cross_entropy_with_logits(outputs, targets.float().view_as(outputs)) in "
            "loss(), if there are two classes"
        )
    return (
        f"its loss() fails: its example() has classes up to {most}, but its model returns {has} "
        f"number{'s' * (has > 1)} for a record; {advice}"
    )


def _on_layer(module: nn.Module, inputs: Inputs) -> str | None:
    """Return which layer gets another size than it takes, and what to write."""
    entered = list[tuple[nn.Module, Tensor | None]]()

    def enter(layer: nn.Module, args: tuple[object, ...]) -> None:
        entered.append((layer, args[0] if args and isinstance(args[0], Tensor) else None))

    def leave(*_: object) -> None:
        entered.pop()

    hooks = [hook for layer in module.modules() for hook in (
        layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave))]  # fmt: skip
    try:
        with suppress(Exception), torch.no_grad():
            call(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not entered or entered[-1][1] is None:
        return None
    layer, given = entered[-1]
    assert given is not None  # noqa: S101 - as was just checked
    name = next((name for name, each in module.named_modules() if each is layer), "")
    kind, place = type(layer).__name__, f"layer `{name}`" if name else "only layer"
    for what, wanted, has, code in _sizes(layer, given):
        if wanted != has:
            return (
                f"its model's {place} ({kind}) takes {wanted} {what}, but gets {has}, in {form_of(given)}; {code}, or "
                f"let example() and load() return other inputs than {form_of(inputs)}"
            )
    return None


def _sizes(layer: nn.Module, given: Tensor) -> Iterator[tuple[str, int, int, str]]:
    """Yield of a layer what it counts, how many it takes, how many it gets, and what to do about it."""
    last, second = given.shape[-1] if given.dim() else 0, given.shape[1] if given.dim() > 1 else 0
    kind = type(layer).__name__
    if isinstance(layer, nn.Linear):
        yield "numbers", layer.in_features, last, f"write nn.Linear({last}, {layer.out_features})"
    elif isinstance(layer, _CONVOLUTIONS):
        sizes = _FORMS[len(layer.kernel_size)]
        yield "dimensions", len(sizes), given.dim(), f"let it get ({', '.join(sizes)})"
        yield "channels", layer.in_channels, second, f"write nn.{kind}({second}, {layer.out_channels}, …)"
    elif isinstance(layer, nn.RNNBase):
        yield "numbers at each step", layer.input_size, last, f"write nn.{kind}({last}, …)"
    elif isinstance(layer, nn.LayerNorm):
        yield "numbers", layer.normalized_shape[-1], last, f"write nn.LayerNorm({last})"
    elif isinstance(layer, nn.GroupNorm):
        yield "channels", layer.num_channels, second, f"write nn.GroupNorm({layer.num_groups}, {second})"
    elif isinstance(layer, nn.Embedding) and not given.is_floating_point() and given.numel():
        most = int(given.max()) + 1
        if most > layer.num_embeddings:
            yield "different numbers", layer.num_embeddings, most, f"write nn.Embedding({most}, {layer.embedding_dim})"
