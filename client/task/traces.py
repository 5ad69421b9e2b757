"""Find what a task keeps from one batch to the next.

A step must depend on its own batch alone. With a counter, a running mean, a cache or a list of past records, a record's
contribution depends on the records before it, perhaps only after a thousand batches, when nobody looks. So the check
walks through a task's objects after a batch, runs other batches and the same batch again, and compares. Values made
once (a table of positions) or overwritten (attention weights) do not differ.

The walk follows attributes, slots, elements of containers, closures, what pickling an object would keep, and names used
by functions of the task's own packages.
"""

from __future__ import annotations

import gc
import io
import sys
import types
import warnings
import zlib
from collections import deque
from contextvars import ContextVar
from functools import lru_cache, partial
from itertools import count, zip_longest
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from client.data.inputs import copied
from client.state.model_parts import tensors_of
from client.task.variations import Variations
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.data.inputs import Inputs
    from client.task.probe import Probe

    Held = Iterator[tuple[str, object]]
    """What an object holds, with the path to it."""

_PLAIN = (Number, np.generic, str, bytes, bytearray, type(None), count)
_CACHED = type(lru_cache(len))  # of functions that remember results
_SERIES = (list, tuple, set, frozenset, deque)
_SKIPPED = {"torch", "opacus", "client", "privacy", "logging", "threading", "concurrent", "multiprocessing"}
"""Packages whose objects may change with every batch without anything being kept of it, such as loggers and threads."""
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "opacus", "client", "privacy", "peft", "transformers"}
_MOST, _LARGE = 1 << 17, 1 << 12  # objects in a walk; in a container that waits for all smaller ones


def check_traces(probe: Probe, inputs: Inputs, targets: Tensor) -> None:
    """Refuse a task that keeps something from earlier batches; some of those tried have values that no other has.

    Raises:
        TaskError: names what changes.
    """
    others = Variations(inputs, torch.Generator().manual_seed(0)).beyond(inputs)
    walks = []
    for batch in (inputs, *others, inputs):
        try:
            probe.backward(probe.loss(probe.outputs(copied(batch)), targets))
        except TaskError:
            if batch is inputs:
                raise
        with warnings.catch_warnings(action="ignore"):  # of attributes and of pickling that libraries give up
            walks.append(list(_Walk(probe).all()))
    for parameter in probe.module.parameters():
        parameter.grad = None
    for one, other_one in zip_longest(walks[0], walks[-1]):
        if one != other_one:
            place, _ = one or other_one
            msg = (
                f"it keeps something of every batch, in {place}, so a record's result may depend on the records "
                "before it; keep nothing but parameters from one batch to the next"
            )
            raise TaskError(msg)


class _Walk:
    """A walk through everything reachable from a task and its model, except parameters and buffers."""

    def __init__(self, probe: Probe) -> None:
        self._roots: list[tuple[str, str, object]] = [("", "its model", probe.module), ("", "the task", probe.task)]
        kinds = [type(probe.task), *(type(part) for part in probe.module.modules())]
        self._own = {kind.__module__.partition(".")[0] for kind in kinds} - _LIBRARIES
        self._of_model = {id(tensor) for tensor in tensors_of(probe.module).values()}
        self._seen: set[int] = set()
        self._kept: list[object] = []  # so that no new object reuses a seen address

    def all(self) -> Held:
        """Yield values, sizes of containers, and digests of arrays."""
        waiting = deque(self._roots)
        while waiting and len(self._kept) < _MOST:
            path, root, value = waiting.pop()
            place = f"`{path.lstrip('.')}` of {root}" if path else root
            if isinstance(value, _PLAIN):
                yield place, repr(value)
                continue
            if id(value) in self._seen:
                continue
            self._seen.add(id(value))
            self._kept.append(value)
            if isinstance(value, Tensor | np.ndarray):
                if id(value) not in self._of_model:
                    yield place, _digest(value)
            elif isinstance(value, (*_SERIES, dict)):
                yield place, len(value)
            elif isinstance(value, _CACHED):
                yield place, value.cache_info().currsize
            parts = [(f"{path}{step}", root, inner) for step, inner in self._inside(value)]
            if len(parts) <= _LARGE:
                waiting += parts
            else:
                waiting.extendleft(parts)  # last, in case there are too many

    def _inside(self, value: Any) -> Held:  # noqa: ANN401 - anything
        match value:
            case dict() | types.MappingProxyType():
                # A subclass's own `items` may import or compute what is not there yet.
                held = dict.items(value) if isinstance(value, dict) else value.items()
                yield from ((f"[{str(key)[:40]!r}]", inner) for key, inner in held)
                yield from _attributes(value)
            case list() | tuple() | set() | frozenset() | deque():
                yield from ((f"[{number}]", inner) for number, inner in enumerate(value))
                yield from _attributes(value)
            case np.ndarray():
                yield from (("", inner) for inner in (value.flat if value.dtype == object else ()))
            case partial() | types.MethodType():
                parts = ("func", "args", "keywords", "__self__", "__func__")
                yield from (("", getattr(value, part)) for part in parts if hasattr(value, part))
            case types.FunctionType():
                yield from self._inside_function(value)
            case types.ModuleType() | type():
                if self._is_own(value):
                    yield from (
                        (f".{name}", attribute) for name, attribute in vars(value).items() if not name.startswith("__")
                    )
                    yield from (("", base) for base in getattr(value, "__bases__", ()))
            case io.IOBase():  # a file
                return
            case _:
                yield from self._inside_object(value)

    def _inside_object(self, value: Any) -> Held:  # noqa: ANN401 - anything
        match value:
            case Tensor():
                yield from _attributes(value)
            case nn.Module():
                yield from _attributes(value)
                yield "", type(value)
                yield from ((f".{name}", child) for name, child in value.named_children())  # last, so walked first
            case ContextVar():
                yield "", value.get(None)
            case torch.Generator():
                yield "", value.get_state()
            case _ if type(value).__module__.partition(".")[0] not in _SKIPPED:
                yield from (("", part) for part in _pickled(value))
                yield "", type(value)
                yield from _attributes(value)

    def _inside_function(self, value: types.FunctionType) -> Held:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f".{name}", cell.cell_contents
            except ValueError:  # the cell is still empty
                continue
        yield from (("", part) for part in (value.__defaults__, value.__kwdefaults__, vars(value)))
        if self._is_own(value):
            named, known = _names(value.__code__), value.__globals__
            yield from ((f".{name}", known[name]) for name in named if name in known)

    def _is_own(self, value: types.ModuleType | types.FunctionType | type) -> bool:
        name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
        return str(name).partition(".")[0] in self._own


def _attributes(value: object) -> Held:
    yield from ((f".{name}", attribute) for name, attribute in getattr(value, "__dict__", {}).items())


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a function and its inner functions use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _pickled(value: object) -> Sequence[object]:
    """Return what pickling keeps of an object: slots, positions of iterators, states of generators; else its referents.

    Nothing is unpickled.
    """
    try:
        kept = value.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - whatever an object raises that cannot be pickled
        return gc.get_referents(value)
    return kept if isinstance(kept, tuple) else ()  # or the name of a global


def _digest(value: Tensor | np.ndarray[Any, Any]) -> object:
    """Return an array's shape and checksum; the shape alone if its values cannot be read."""
    try:
        array = (
            value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() if isinstance(value, Tensor) else value
        )
        return value.shape, zlib.crc32(np.ascontiguousarray(array).data.cast("B"))
    except (RuntimeError, TypeError, ValueError):  # a finished transform's, or without own memory
        return value.shape
