"""A task that keeps anything of a batch is refused, even if nobody sees yet what it does with it."""

from __future__ import annotations

import queue
import random
import threading
from array import array
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache, lru_cache, update_wrapper
from itertools import cycle
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.task.guard import check_task
from tests.probes import WIDTH, Through, Toy, complaint, head, words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATE = 10_000  # batches, more than anybody tries

VOCABULARY: dict[int, int] = {}
LAST: list[Tensor] = []


class Late(nn.Module):
    """Notes something of every batch, and uses it when nobody looks any more."""

    def __init__(self, note: Callable[[Late, Tensor], None]) -> None:
        super().__init__()
        self.layer, self._note, self.batches, self.mean, self.seen = head(), note, 0, torch.zeros(WIDTH), {}

    seen: dict[Any, Any]

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        self._note(self, inputs.detach())
        late = self.batches > LATE or len(self.seen) > LATE
        outputs: Tensor = self.layer(inputs - self.mean if late else inputs)
        return outputs


def counted(model: Late, _: Tensor) -> None:
    model.batches += 1


def averaged(model: Late, inputs: Tensor) -> None:
    model.mean = 0.99 * model.mean + 0.01 * inputs.mean(0)


def noted(model: Late, inputs: Tensor) -> None:
    model.seen.update((tuple(row.tolist()), len(inputs)) for row in inputs)


def numbered(inputs: Tensor) -> Tensor:
    """Numbers words in the order in which they come, in a global."""
    return torch.tensor([[VOCABULARY.setdefault(int(word), len(VOCABULARY)) for word in row] for row in inputs])


@cache
def first_of(key: int) -> Tensor:
    del key
    return LAST[0]


def whoever_came_first(inputs: Tensor) -> Tensor:
    """Takes for each record the first one that had its key."""
    rows = []
    for row in inputs:
        LAST[:] = [row.detach()]
        rows.append(first_of(int(8 * row[0])))
    return torch.stack(rows)


def in_a_closure() -> nn.Module:
    batches = 0

    def late(inputs: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        return inputs - inputs.mean(0) if batches > LATE else inputs

    return Through(late, head())


class FromBehind(nn.Module):
    """A hook on the way back keeps a running norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = head(), 0.0
        self.layer.register_full_backward_hook(self._keep)

    def _keep(self, _: nn.Module, __: Any, gradients: Any) -> None:  # noqa: ANN401 - torch's
        self.norm = 0.9 * self.norm + float(gradients[0].norm())

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


class History(Toy):
    """Its loss writes down what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = super().loss(outputs, targets)
        self.losses.append(float(loss.detach()))
        return loss


KEPT: dict[str, tuple[Toy, str]] = {
    "a counter": (Toy(lambda: Late(counted)), "`batches` of its model"),
    "a running mean": (Toy(lambda: Late(averaged)), "`mean` of its model"),
    "all that was seen": (Toy(lambda: Late(noted)), "`seen` of its model"),
    "a counter in a closure": (Toy(in_a_closure), "batches` of its model"),
    "a norm from behind": (Toy(FromBehind), "`norm` of its model"),
    "a history": (History(), "`losses` of the task"),
    "a cache by a key": (Toy(lambda: Through(whoever_came_first, head())), "first_of` of"),
    "a vocabulary in a global": (
        Toy(lambda: Through(lambda x: numbered(x) % 500, nn.Embedding(500, 3), Through(lambda x: x.mean(1))),
             example=words),
        "VOCABULARY` of"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "place"), KEPT.values(), ids=KEPT.keys())
def test_state_that_outlasts_a_batch_is_refused_and_named(task: Toy, place: str) -> None:
    VOCABULARY.clear()
    first_of.cache_clear()
    message = complaint(task)
    assert message.startswith("it keeps something of every batch, in ")
    assert place in message


class Holding(nn.Module):
    """Has an object of any kind, and does something to it with every batch."""

    def __init__(self, thing: Any, change: Callable[[Any, Tensor], Any]) -> None:  # noqa: ANN401 - anything
        super().__init__()
        self.layer, self.thing, self._change = head(), thing, change

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self._change(self.thing, inputs.detach())
        self.thing = self.thing if outputs is None else outputs
        scores: Tensor = self.layer(inputs)
        return scores


@dataclass(slots=True)
class Slotted:
    count: int = 0


class Behind:
    """Counts in a global when an attribute is read."""

    @property
    def turn(self) -> None:
        VOCABULARY[0] = VOCABULARY.get(0, 0) + 1


def raised(thing: Any, inputs: Tensor) -> None:  # noqa: ANN401 - anything that has a count
    thing.count = getattr(thing, "count", 0) + len(inputs)


class Counted:
    """Counts the calls of a function, which it stands for."""

    def __init__(self, called: Callable[[Tensor], Tensor]) -> None:
        update_wrapper(self, called)
        self.count, self._called = 0, called

    def __call__(self, inputs: Tensor) -> Tensor:
        self.count += 1
        return self._called(inputs)


def skipped(numbers: Iterator[int]) -> None:
    next(numbers)


def put(kept: ContextVar[int]) -> None:
    kept.set(kept.get() + 1)


def marked() -> nn.Module:
    """Counts in an attribute of a parameter."""

    def mark(inputs: Tensor) -> Tensor:
        raised(layer.weight, inputs)
        return inputs

    layer = nn.Linear(WIDTH, 3)
    return Through(mark, layer)


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], Any]]] = {
    "a number of numpy's": (lambda: np.float32(0), lambda mean, x: np.float32(0.9) * mean + np.float32(x.mean())),
    "a date": (lambda: np.datetime64("2020-01-01"), lambda date, _: date + np.timedelta64(1, "D")),
    "a decimal": (lambda: Decimal(0), lambda number, _: number + 1),
    "a fraction": (lambda: Fraction(0), lambda number, _: number + 1),
    "slots": (Slotted, raised),
    "a namespace": (SimpleNamespace, raised),
    "a thread's own": (threading.local, raised),
    "a generator": (lambda: (number for number in range(LATE)), lambda numbers, _: skipped(numbers)),
    "a range's iterator": (lambda: iter(range(LATE)), lambda numbers, _: skipped(numbers)),
    "a cycle": (lambda: cycle([0] * 30 + [1]), lambda numbers, _: skipped(numbers)),
    "an array": (lambda: array("d", [0.0]), lambda numbers, _: numbers.append(1.0)),
    "an array of objects": (lambda: np.array([0, None], object), lambda them, _: them.put(0, them[0] + 1)),
    "a queue": (queue.Queue, lambda waiting, x: waiting.put(x.mean(0))),
    "Python's generator": (lambda: random.Random(0), lambda drawing, _: drawing.seed(drawing.random())),  # noqa: S311
    "numpy's generator": (lambda: np.random.default_rng(0), lambda drawing, _: drawing.shuffle([1, 2, 3])),
    "torch's generator": (torch.Generator, lambda drawing, _: skipped(iter(drawing.seed, None))),
    "a variable of the context": (lambda: ContextVar("kept", default=0), lambda kept, _: put(kept)),
    "a global, in a property": (Behind, lambda behind, _: behind.turn),
}  # fmt: skip


@pytest.mark.parametrize(("thing", "change"), HELD.values(), ids=HELD.keys())
def test_state_that_outlasts_a_batch_in_any_object_is_refused(
    thing: Callable[[], Any], change: Callable[[Any, Tensor], Any]
) -> None:
    VOCABULARY.clear()
    task = Toy(lambda: Holding(thing(), change))
    assert complaint(task).startswith("it keeps something of every batch, in `")


class Wordy(nn.Module):
    """Counts, beside more objects than anybody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.count = head(), 0
        self.words = [[number] for number in range(200_000)]

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        raised(self, inputs)
        outputs: Tensor = self.layer(inputs)
        return outputs


def test_a_count_beside_a_large_vocabulary_is_refused() -> None:
    assert "`count` of its model" in complaint(Toy(Wordy))


def test_a_decorator_that_counts_is_refused() -> None:
    assert "count` of its model" in complaint(Toy(lambda: Through(Counted(torch.tanh), head())))


def test_a_count_at_a_parameter_is_refused() -> None:
    assert "weight'].count` of its model" in complaint(Toy(marked))


@lru_cache
def positions(length: int) -> Tensor:
    return torch.arange(length) / length


class Once(nn.Module):
    """Makes a table when it is first asked for, and keeps the last weights to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.layer = nn.Linear(WIDTH, WIDTH), head()
        self.table: Tensor | None = None
        self.weights: list[Tensor] = []

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        self.table = torch.ones(WIDTH) if self.table is None else self.table
        weights = self.gate(inputs).softmax(1) * self.table + positions(WIDTH)
        self.weights = [weights.detach()]
        outputs: Tensor = self.layer(weights * inputs)
        return outputs


def test_state_that_is_made_once_or_overwritten_is_accepted() -> None:
    check_task(Toy(Once), "package:Class")
