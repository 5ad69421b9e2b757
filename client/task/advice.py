"""Say what to write instead, where a model or a loss fails on records that a task makes up.

Torch's own messages speak of matrices and types, not of the task. So the usual changes are tried, and the first with
which the model or the loss works is the advice. If none does, a layer that gets another size than it takes is named.
"""

from __future__ import annotations

import time
from contextlib import suppress
from inspect import signature
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from client.data.inputs import Inputs, call, count, rows, tensors
from client.task.forms import form_of, one_form

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.task.task import Task

DERIVATIVE = "torch.func.vmap(torch.func.grad(…)) in place of torch.autograd.grad"
"""How a model may differentiate its own outputs with respect to each record's inputs."""

_BATCHES, _SECONDS = range(2, 65), 1.0  # sizes tried, and for how long
_MOST = 4  # inputs of a model, of which all changes are tried
_Change = tuple["Callable[[Tensor], Tensor]", str]  # and how it is written

_KEPT: _Change = (lambda part: part, "")
_FLOAT: _Change = (lambda part: part.float(), ".float()")
_LONG: _Change = (lambda part: part.long(), ".long()")
_COLUMN: _Change = (lambda part: part.unsqueeze(1), ".unsqueeze(1)")
_ROW: _Change = (lambda part: part.squeeze(1), ".squeeze(1)")
_FLAT: _Change = (lambda part: part.flatten(1), ".flatten(1)")
_CHANNELS: _Change = (lambda part: part.movedim(-1, 1), ".movedim(-1, 1)")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OTHER_FLOATS = {torch.float64, torch.float16, torch.bfloat16}
_OF_NUMBERS = (nn.Linear, *_CONVOLUTIONS, nn.RNNBase, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)
_OF_WORDS = (nn.Embedding, nn.EmbeddingBag)
_FORMS = {
    1: ("n", "channels", "length"),
    2: ("n", "channels", "height", "width"),
    3: ("n", "channels", "depth", "height", "width"),
}


def advice_on_model(module: nn.Module, inputs: Inputs, failure: BaseException | None) -> str | None:
    """Return what is wrong with a model that fails on made-up inputs, and what to write; None if that is not known.

    Args:
        module: the model; torch computes gradients, or not, as it did when the model failed.
        inputs: `(n, ...)`.
        failure: what it raised.
    """
    return (
        _on_failure(failure)
        or _on_call(module, inputs)
        or (_on_layer(module, inputs) if isinstance(failure, IndexError) else None)
        or _on_size(module, inputs)
        or _on_form(module, inputs)
        or _on_layer(module, inputs)
    )


def advice_on_loss(task: Task, outputs: Tensor, targets: Tensor, failure: BaseException | None) -> str | None:
    """Return what is wrong with a loss that fails on made-up targets, and what to write; None if that is not known.

    Args:
        task: whose loss it is.
        outputs: of its model, `(n, ...)`.
        targets: `(n, ...)`.
        failure: what it raised.
    """
    if isinstance(failure, IndexError) and outputs.dim() > 1:
        return _on_classes(outputs, targets)
    shapes = [_KEPT]
    if targets.dim() == 1 or targets.dim() < outputs.dim():
        shapes.append(_COLUMN)
    elif targets.shape[1] == 1:
        shapes.append(_ROW)
    both = f"outputs {form_of(outputs)} and targets {form_of(targets)}"
    for shape, kind in product(shapes, [_KEPT, *_types_of(targets)]):
        if _works(task, outputs, kind[0](shape[0](targets))):
            return (
                f"its loss() cannot compute with {both}, as its model and its example() make them; return "
                f"targets{kind[1]}{shape[1]} from example() and load() instead"
            )
    if outputs.dim() > 2 and _works(task, outputs.movedim(-1, 1), targets):  # noqa: PLR2004 - each with classes
        return (
            f"its loss() cannot compute with {both}; return outputs.movedim(-1, 1), with the classes in dimension 1, "
            "from the model instead"
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


def advice_on_value(loss: object, outputs: Tensor, targets: Tensor) -> str:
    """Return what a loss should return instead of what it does, and how to write that."""
    if isinstance(loss, Tensor) and loss.dim() == 0 and targets.dtype == torch.float64:
        return "return targets.float() from example() and load()"
    advice = "return a float32 scalar: the mean of one term per record"
    if isinstance(loss, Tensor) and loss.shape == (len(outputs),):
        return f"{advice}, such as loss.mean()"
    return f"{advice}, such as loss.float()" if isinstance(loss, Tensor) and loss.dim() == 0 else advice


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


def _on_failure(failure: BaseException | None) -> str | None:
    """Return what is wrong if torch's message says it."""
    if "Inference tensors" in str(failure):
        return (
            "its model computes under torch.inference_mode(), whose results cannot be in a gradient; write "
            "torch.no_grad() there instead"
        )
    if "does not require grad" in str(failure):
        return (
            "its model computes gradients in forward, which fails where torch records none, as in an evaluation; "
            f"write {DERIVATIVE}"
        )
    return None


def _on_size(module: nn.Module, inputs: Inputs) -> str | None:
    """Return what is wrong if a model takes batches of another size."""
    until = time.monotonic() + _SECONDS
    for size in (count(inputs), *_BATCHES):
        with suppress(Exception, SystemExit):
            copies = rows(inputs, torch.zeros(size, dtype=torch.int64))
            if _has_rows(call(module, copies), size):
                if size == count(inputs):
                    return None  # other records fail, not their number
                return (
                    f"its model takes batches of {size}, but not of {count(inputs)}; let it take any number of "
                    "records, by len(inputs) in place of a constant, and flatten from dimension 1 on"
                )
        if time.monotonic() > until:
            break
    return None


def _on_form(module: nn.Module, inputs: Inputs) -> str | None:
    """Return what to change of the inputs' types or shapes, if the model then computes."""
    parts = tensors(inputs)
    names = (
        ["inputs"] if isinstance(inputs, Tensor)
        else [f"inputs[{name!r}]" for name in (inputs if isinstance(inputs, dict) else range(len(inputs)))]
    )  # fmt: skip
    for changes in _changes(parts):
        with suppress(Exception, SystemExit):
            changed = [change(part) for (change, _), part in zip(changes, parts, strict=True)]
            if _has_rows(call(module, _like(inputs, changed)), count(inputs)):
                codes = [f"{name}{code}" for name, (_, code) in zip(names, changes, strict=True) if code]
                return (
                    f"its model cannot compute with inputs {form_of(inputs)}, as its example() makes them up; return "
                    f"{' and '.join(codes)} from example() and load() instead"
                )
    return None


def _changes(parts: list[Tensor]) -> list[tuple[_Change, ...]]:
    """Return the changes of inputs to try, one for each of them; few changes first."""
    if len(parts) > _MOST:
        return [tuple(_FLOAT if part.dtype in _OTHER_FLOATS else _KEPT for part in parts)]
    options = [[_KEPT, *_types_of(part)] for part in parts]
    changes = sorted(product(*options), key=lambda each: sum(change is not _KEPT for change in each))[1:]
    if len(parts) == 1:
        changes += [(_both(*each),) for each in product(options[0], (_COLUMN, _FLAT, _CHANNELS))]
    return changes


def _both(one: _Change, other: _Change) -> _Change:
    return (lambda part: other[0](one[0](part))), one[1] + other[1]


def _like(inputs: Inputs, parts: list[Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return parts[0]
    return dict(zip(inputs, parts, strict=True)) if isinstance(inputs, dict) else tuple(parts)


def _has_rows(outputs: object, rows: int) -> bool:
    return isinstance(outputs, Tensor) and outputs.dtype == torch.float32 and outputs.dim() > 0 and len(outputs) == rows


def _works(task: Task, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss, and its gradient, can be computed."""
    with suppress(Exception, SystemExit), torch.enable_grad():
        variable = outputs.detach().clone().requires_grad_()
        loss: object = task.loss(variable, targets)
        if isinstance(loss, Tensor) and loss.dim() == 0 and bool(loss.isfinite()):
            torch.autograd.grad(loss, variable)
            return True
    return False


def _on_classes(outputs: Tensor, targets: Tensor) -> str | None:
    """Return what is wrong if there are more classes than outputs."""
    if targets.is_floating_point() or targets.numel() * outputs.shape[1] != outputs.numel():
        return None
    least, most, has = int(targets.min()), int(targets.max()), outputs.shape[1]
    if most < has and least >= 0:
        return None
    if least < 0:
        return (
            f"its loss() fails: its example() has classes from {least} on; number them from 0 in example() and load()"
        )
    advice = f"give the model {most + 1} outputs in model()"
    if least:
        advice += ", or number the classes from 0 in example() and load()"
    if has == 1:
        advice += (
            ", or write functional.binary_cross_entropy_with_logits(outputs, targets.float().view_as(outputs)) in "
            "loss(), if there are two classes"
        )
    return (
        f"its loss() fails: its example() has classes up to {most}, but its model returns {has} "
        f"number{'s' * (has > 1)} for {'a record' if targets.dim() == 1 else 'each'}; {advice}"
    )


def _on_call(module: nn.Module, inputs: Inputs) -> str | None:
    """Return what is wrong if `forward` does not take as many inputs, or not by these names."""
    named = inputs if isinstance(inputs, dict) else {}
    placed = [] if named else tensors(inputs)
    try:
        signature(module.forward).bind(*placed, **named)
    except TypeError:
        places = ", ".join(named) or (
            "inputs" if len(placed) == 1 else ", ".join(f"input_{n + 1}" for n in range(len(placed)))
        )
        called = ", ".join(f"{name}=…" for name in named) or ", ".join("…" for _ in placed)
        return (
            f"its model is called as forward({called}), with the inputs that its example() returns; write "
            f"forward(self, {places}), or return other inputs from example() and load()"
        )
    return None


def _on_layer(module: nn.Module, inputs: Inputs) -> str | None:
    """Return which layer gets another type or size than it takes, and what to write."""
    entered = list[tuple[nn.Module, object]]()

    def enter(layer: nn.Module, args: tuple[object, ...]) -> None:
        entered.append((layer, args[0] if args else None))

    def leave(*_: object) -> None:
        entered.pop()

    hooks = [hook for layer in module.modules() for hook in (
        layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave))]  # fmt: skip
    try:
        with suppress(Exception, SystemExit), torch.no_grad():
            call(module, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not entered:
        return None
    layer, given = entered[-1]
    name = next((name for name, each in module.named_modules() if each is layer), "")
    kind, place = type(layer).__name__, f"layer `{name}`" if name else "only layer"
    if isinstance(given, tuple):
        return f"its model's {place} ({kind}) gets a tuple; give it one tensor, such as the first that nn.GRU returns"
    for what, wanted, has, code in _taken(layer, given) if isinstance(given, Tensor) else ():
        if wanted != has:
            return (
                f"its model's {place} ({kind}) takes {wanted} {what}, but gets {has}, in {one_form(given)}; {code}, or "
                f"let example() and load() return other inputs than {form_of(inputs)}"
            )
    return None


def _taken(layer: nn.Module, given: Tensor) -> Iterator[tuple[str, object, object, str]]:
    """Yield of a layer what it takes, which or how many, which or how many it gets, and what to do about it."""
    kind, dtype = type(layer).__name__, str(given.dtype).removeprefix("torch.")
    if isinstance(layer, _OF_WORDS):
        if given.dtype not in {torch.int32, torch.int64}:
            yield "numbers", "int64", dtype, "write .long() before it"
        elif given.numel():
            yield "as the smallest number", 0, min(0, int(given.min())), "number words from 0"
            most = max(layer.num_embeddings, int(given.max()) + 1)
            code = f"write nn.{kind}({most}, {layer.embedding_dim})"
            yield "different numbers", layer.num_embeddings, most, code
    elif isinstance(layer, _OF_NUMBERS):
        own = next((weight.dtype for weight in layer.parameters(recurse=False)), torch.float32)
        change = ".float() before it" if own == torch.float32 else f".to({own}) before it, and .float() after it"
        yield "numbers", str(own).removeprefix("torch."), dtype, f"write {change}"
        yield from _sizes(layer, given)


def _sizes(layer: nn.Module, given: Tensor) -> Iterator[tuple[str, object, object, str]]:
    """Yield of a layer what it counts, how many it takes, how many it gets, and what to do about it."""
    last, second = given.shape[-1] if given.dim() else 0, given.shape[1] if given.dim() > 1 else 0
    kind = type(layer).__name__
    if isinstance(layer, nn.Linear):
        flat = "keep the records in dimension 0, by flattening from dimension 1 on"
        code = flat if given.dim() == 1 else f"write nn.Linear({last}, {layer.out_features})"
        yield "numbers", layer.in_features, last, code
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
    elif isinstance(layer, nn.MultiheadAttention):
        yield "numbers", layer.embed_dim, last, f"make it {last} wide"
