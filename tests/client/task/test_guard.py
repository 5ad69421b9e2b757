"""What cannot be trained at all is refused with a sentence that says why."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.task.task import Task, import_task
from privacy.errors import TaskError
from tests.probes import CLASSES, WIDTH, Through, Toy, complaint, head, vectors
from tests.studies import Tiny

if TYPE_CHECKING:
    from collections.abc import Callable


class Constant(nn.Linear):
    """A buffer that never changes."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__(WIDTH, CLASSES)
        self.register_buffer("shift", shift)


class Overlaid(nn.Sequential):
    """A tensor is given to two parameters, where one parameter would be given to two layers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), head())
        cast("Any", self[1]).weight = nn.Parameter(cast("Any", self[0]).weight.data)


class Zeroed(nn.Linear):
    """Its weights start at zero."""

    @override
    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def reads(inputs: object, targets: object = None) -> Toy:
    """A task with this example."""
    aims = vectors()[1] if targets is None else targets
    return Toy(example=lambda: cast("Any", (inputs, aims)))


def two_parts(_: Tensor) -> Tensor:
    return cast("Tensor", (torch.ones(1), torch.ones(1)))


def failing(*_: object) -> Any:  # noqa: ANN401 - never returns
    msg = "no such luck"
    raise ValueError(msg)


def drawn_by(draw: Callable[[], float]) -> nn.Module:
    layer = Zeroed(WIDTH, CLASSES)
    with torch.no_grad():
        layer.weight.fill_(draw())
    return layer


ONE = head()
UNUSABLE: dict[str, tuple[Task, str]] = {
    "an example that fails": (Toy(example=failing), "its example() fails (ValueError: no such luck); correct it"),
    "an example of another kind": (reads(np.ones((8, 4))), "its example has inputs and targets a numpy.ndarray and "),
    "an example of inputs alone": (
        Toy(example=lambda: cast("Any", torch.ones(4, 2))),
        "its example() returns float32 (n, 2); return two, the inputs and the targets that load() would: for example"),
    "a single record": (
        reads(torch.ones(1, 4), torch.ones(1)), "its example has inputs float32 (n, 4) with n = 1; make up at least 4"),
    "fewer targets": (
        reads(torch.randn(8, 4), torch.arange(5)), "its example has targets int64 (n,) with n = 5; make up"),
    "equal records": (reads(torch.ones(8, 4)), "its example has the same inputs in every record; make up different"),
    "one class": (reads(torch.randn(8, 4), torch.ones(8)), "its example has the same targets in every record; make up"),
    "not finite": (reads(torch.full((8, 4), torch.inf)), "its example has inputs that are complex or not finite"),
    "unsigned shorts": (
        reads(torch.zeros(8, 4, dtype=torch.uint16)), "its example has inputs uint16 (n, 4), with which torch hardly"),
    "a model that fails": (Toy(failing), "its model() fails (ValueError: no such luck); correct it"),
    "no module": (Toy(lambda: cast("Any", 3)), "its model() returns a builtins.int; return a torch.nn.Module"),
    "another width": (
        Toy(lambda: nn.Linear(9, 3)), "its model's only layer (Linear) takes 9 numbers, but gets 4, in float32"),
    "a layer without a size": (Toy(lambda: nn.LazyLinear(3)), "its model's parameter `weight` has no size yet; use"),
    "doubles": (
        Toy(lambda: head().double()), "its model trains parameters that are not float32, such as `weight`, of"),
    "complex numbers": (
        Toy(lambda: head().to(torch.complex64)),
        "its model trains parameters that are not float32, such as `weight`, of torch.complex64; make it float32,"),
    "another device": (Toy(lambda: head().to("meta")), "its model's `weight` is on meta; make it on the CPU"),
    "a sparse buffer": (Toy(lambda: Constant(torch.eye(3).to_sparse())), "its model's `shift` is sparse, which its"),
    "sparse rows": (Toy(lambda: Constant(torch.eye(3).to_sparse_csr())), "its model's `shift` is sparse, which its"),
    "no parameters": (Toy(nn.Identity), "its model has nothing to train"),
    "the same model": (Toy(lambda: ONE), "its model() returns the same parameters twice; make a new model every time"),
    "numpy's luck": (
        Toy(lambda: drawn_by(lambda: float(np.random.default_rng().random()))), "its model() makes a different"),
    "python's luck": (
        Toy(lambda: drawn_by(random.random)), "its model() makes a different model each time; draw the initial"),
    "numpy's luck in forward": (
        Toy(lambda: Through(lambda x: x * np.random.default_rng().random(), head())),
        "its model remembers earlier batches, or draws from another generator than torch's default; let"),
    "two outputs": (
        Toy(lambda: Through(lambda x: x, head(), Through(two_parts))), "its model returns a builtins.tuple"),
    "outputs by name": (
        Toy(lambda: Through(lambda x: x, head(), Through(lambda x: cast("Any", {"logits": x})))),
        "its model returns a builtins.dict; return one tensor with one row per record, for example outputs['logits']"),
    "complex outputs": (
        Toy(lambda: Through(lambda x: x, head(), Through(torch.fft.fft))), "its model returns complex64 (n, 3)"),
    "classes": (
        Toy(lambda: Through(lambda x: x, head(), Through(lambda x: x.argmax(1)))),
        "its model returns int64 (n,); return float32"),
    "frozen": (
        Toy(lambda: head().requires_grad_(requires_grad=False)),
        "its model has nothing to train, or parameters without elements; set requires_grad=True on what should be"),
    "two parameters in one memory": (
        Toy(Overlaid), "its model's `0.weight` and `1.weight` share memory but are not one parameter; assign"),
    "a buffer that no file can hold": (
        Toy(lambda: Constant(torch.zeros(3, dtype=torch.complex128))), "its model's `shift` is of torch.complex128"),
    "outputs in its loss": (
        Toy(loss=lambda outputs, _: outputs), "its loss returns float32 (n, 3); return a float32 scalar"),
    "a number as loss": (
        Toy(loss=lambda *_: cast("Any", 0.5)), "its loss returns a builtins.float; return a float32 scalar"),
    "a loss that fails": (
        Toy(loss=failing), "its loss() fails on 5 made-up records (ValueError: no such luck); correct it"),
    "an infinite loss": (Toy(loss=lambda outputs, _: outputs.mean() / 0), "its loss or its gradient is not finite"),
    "an infinite slope": (Toy(loss=lambda outputs, _: (outputs * 0).sqrt().mean()), "its loss or its gradient is not"),
    "accuracy as loss": (
        Toy(loss=lambda outputs, targets: (outputs.argmax(1) == targets).float().mean()),
        "its loss does not depend on the model's"),
    "no gradient": (
        Toy(lambda: Through(torch.detach, head(), Through(torch.detach))), "its loss does not depend on the model's"),
    "one metric": (
        Toy(metrics=lambda outputs, _: {"accuracy": outputs.mean()}),
        "its metric 'accuracy' is float32 (); return a tensor"),
    "a number as metric": (
        Toy(metrics=lambda *_: cast("Any", {"recall": 1.0})), "its metric 'recall' is a builtins.float; return"),
    "metrics that fail": (Toy(metrics=failing), "its metrics() fails on 5 made-up records (ValueError: no such luck)"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_task_that_cannot_be_trained_is_refused_with_the_reason(task: Task, message: str) -> None:
    before = torch.get_rng_state()
    assert complaint(task).startswith(message)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_task_without_a_method_is_an_error_that_names_it() -> None:
    name = f"{NoExample.__module__}:{NoExample.__name__}"
    with pytest.raises(TaskError, match="lacks example; write what is missing"):
        import_task(name)


class NoExample(Tiny):
    """One method is missing."""

    example = Task.example  # type: ignore[assignment]  # abstract
