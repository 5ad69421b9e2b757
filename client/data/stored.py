"""Records that stay where they are, in a map-style `torch.utils.data.Dataset`, and are read when they are needed.

Each record is read by its index, compared with the form of the made-up records, and stacked with others of its part: so
memory holds a few parts, however many records there are. A record that cannot be used raises a `DataError` with its
index, never with its contents or with the words of the data set's own exception.

`loader_workers` in `[data]` of `site.toml` says how many processes read ahead. They are spawned, since a process with
threads cannot be forked safely.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from client.data.inputs import Inputs, as_inputs, joined, move, named, rows, tensors
from client.data.site_records import Records
from client.task.conversions import changes, converted
from client.task.forms import form_of
from client.task.user_code import is_memory
from privacy.errors import CloisterError, DataError
from privacy.failures import raised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from client.data.inputs import Batch
    from client.task.probe import Example

_CHUNK = 16  # records that a process reads at a time


@dataclass(frozen=True)
class Unreadable:
    """What is wrong with a record that cannot be used."""

    text: str


@dataclass(frozen=True)
class Reader(Dataset[Any]):
    """Reads records and checks them, here or in a process of its own."""

    dataset: Dataset[Any]
    example: Example
    task: str  # its name
    path: Path

    def __getitem__(self, index: int) -> Batch | Unreadable:
        """Read one record, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch | Unreadable:
        """Return inputs and targets `(k, ...)`, or what is wrong with the first record that cannot be used."""
        inputs, targets = list[Inputs](), list[Tensor]()
        for index in indices:
            record = self._one(index)
            if isinstance(record, Unreadable):
                return record
            inputs.append(record[0])
            targets.append(record[1])
        if not targets:
            return rows(self.example.inputs, slice(0)), self.example.targets[:0]
        return joined(inputs), torch.cat(targets)

    def changes(self) -> list[str]:
        """Say which types of numbers are changed in the first record; nothing if it cannot be read: a check says that.

        A copy of the data set is read, so that a file that it opens does not keep it from being pickled.
        """
        made_up = self.example.inputs, self.example.targets
        with suppress(Exception, SystemExit), torch.random.fork_rng(devices=[]):
            item: Any = copy(self.dataset)[0]
            own = [_alone(*pair) for pair in zip(item, made_up, strict=True)]
            return changes((own[0], own[1]), self._taken(item))
        return []

    def _one(self, index: int) -> Batch | Unreadable:
        """Return one record, as a batch of one."""
        where = f"{self.path}: record {index + 1} (index {index}) of {self.task}'s data set"
        try:
            item: Any = self.dataset[index]
        except KeyboardInterrupt:
            raise
        except CloisterError as error:
            return Unreadable(str(error))
        except BaseException as error:
            if is_memory(error):
                raise MemoryError from error
            reason = raised(error, self.task.partition(":")[0])
            return Unreadable(f"{where} cannot be read: it raises {reason}; correct the record, or leave it out")
        try:
            return self._taken(item)
        except DataError as error:
            return Unreadable(f"{where} {error}")

    def _taken(self, item: Any) -> Batch:  # noqa: ANN401 - whatever a data set returns
        """Return a record as a batch of one, in the form of the example.

        Raises:
            DataError: if it has another form, or numbers that are not finite; what the record is called is missing.
        """
        if not isinstance(item, tuple | list) or len(item) != 2:  # noqa: PLR2004 - inputs and target
            msg = "is not a pair; return (inputs, target) from its __getitem__"
            raise DataError(msg)
        made_up = self.example.inputs, self.example.targets
        own = [_alone(*pair) for pair in zip(item, made_up, strict=True)]
        try:
            inputs = as_inputs(converted(own[0], made_up[0], "inputs"))
            target = converted(own[1], made_up[1], "targets")
        except DataError as error:
            msg = f"cannot be used: {error}"
            raise DataError(msg) from error
        if inputs is None or not isinstance(target, Tensor) or not self._fits(inputs, target):
            read = f"{form_of(item[0] if inputs is None else inputs)} and {form_of(target)}"
            msg = f"is {read}, but the example has {' and '.join(map(form_of, made_up))}; correct one of the two"
            raise DataError(msg)
        for label, part in (*named(inputs).items(), ("target", target)):
            if not bool(part.isfinite().all()):
                msg = f"has numbers in its {label} that are not finite; correct the record, or the task's scaling"
                raise DataError(msg)
        return inputs, target

    def _fits(self, inputs: Inputs, target: Tensor) -> bool:
        own, made_up = (*tensors(inputs), target), (*tensors(self.example.inputs), self.example.targets)
        return (
            type(inputs) is type(self.example.inputs)
            and len(own) == len(made_up)
            and all(
                (part.dtype, part.shape, part.layout) == (like.dtype, (1, *like.shape[1:]), torch.strided)
                for part, like in zip(own, made_up, strict=True)
            )
        )


def _alone(value: Any, like: Inputs) -> Any:  # noqa: ANN401 - whatever a data set returns
    """Return what a record has as a batch of one."""
    if isinstance(like, dict) and isinstance(value, Mapping):
        return {name: _alone(part, like[name]) if name in like else part for name, part in value.items()}
    if isinstance(like, tuple) and isinstance(value, tuple | list) and len(value) == len(like):
        return tuple(_alone(*pair) for pair in zip(value, like, strict=True))
    if isinstance(value, np.number | np.bool_):
        return np.array([value])
    if isinstance(value, Tensor | np.ndarray):
        return value[None]
    return value if value is None or isinstance(value, str | bytes | Mapping) else [value]


def _same(batch: object) -> object:
    """Return what a process read; it is a batch already."""
    return batch


@dataclass
class Feed:
    """Reads batches: in this process, or in others that read ahead."""

    reader: Reader
    workers: int = 0
    pinned: bool = False  # into memory from which a GPU copies faster
    _parts: list[list[int]] = field(default_factory=list)  # what the other processes are to read
    _busy: bool = False

    def read(self, parts: list[list[int]]) -> Iterator[Batch]:
        """Read records, given the indices of each part, one part after the other.

        Raises:
            DataError: if a record cannot be used, or another process ended.
        """
        if self.workers and not self._busy:
            yield from self._read_ahead(parts)
            return
        for part in parts:
            yield self._checked(self.reader.__getitems__(part))

    def _read_ahead(self, parts: list[list[int]]) -> Iterator[Batch]:
        chunks = [[part[at : at + _CHUNK] for at in range(0, len(part), _CHUNK)] for part in parts]
        self._parts[:] = [chunk for of_part in chunks for chunk in of_part]
        self._busy = True
        try:
            batches = iter(self._loader)
            for of_part in chunks:
                loaded = [self._checked(next(batches)) for _ in of_part]
                if not loaded:
                    loaded = [self._checked(self.reader.__getitems__([]))]
                yield joined([inputs for inputs, _ in loaded]), torch.cat([targets for _, targets in loaded])
        except (CloisterError, MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            msg = (
                f"{self.reader.path}: the processes that read records do not start or have ended ({raised(error)}); "
                "set loader_workers = 0 in [data] of site.toml, or let the data set be pickled and keep open files "
                "out of it"
            )
            raise DataError(msg) from error
        finally:
            self._busy = False

    @cached_property
    def _loader(self) -> DataLoader[Any]:
        return DataLoader(
            self.reader,
            batch_sampler=self._parts,  # not this object: in a cycle, its processes would take seconds to end
            num_workers=self.workers,
            collate_fn=_same,
            pin_memory=self.pinned,
            multiprocessing_context="spawn",
            persistent_workers=True,
            generator=torch.Generator().manual_seed(secrets.randbits(62)),  # torch's own must not move
        )

    @staticmethod
    def _checked(batch: Batch | Unreadable) -> Batch:
        if isinstance(batch, Unreadable):
            raise DataError(batch.text)
        return batch


@dataclass(frozen=True)
class Stored(Records):
    """Some of a data set's records, to be read to a device."""

    feed: Feed
    indices: Tensor  # (n,): of the records in the data set
    device: torch.device

    @override
    def __len__(self) -> int:
        return len(self.indices)

    @property
    @override
    def in_memory(self) -> bool:
        return False

    @override
    def select(self, chosen: Tensor) -> Batch:
        return next(self.parts(chosen, max(1, len(chosen))))

    @override
    def subset(self, chosen: Tensor) -> Stored:
        return Stored(self.feed, self.indices[chosen.cpu()], self.device)

    @override
    def to(self, device: torch.device) -> Stored:
        return Stored(self.feed, self.indices, device)

    @override
    def parts(self, chosen: Tensor, size: int) -> Iterator[Batch]:
        lists = [part.tolist() for part in self.indices[chosen.cpu()].split(size)]
        for inputs, targets in self.feed.read(lists):
            yield move(inputs, self.device), targets.to(self.device)
