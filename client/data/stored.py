"""Records that stay where they are, in a map-style `torch.utils.data.Dataset`, and are read when they are needed.

Each record is read by its index, compared with the form of the made-up records, and stacked with others of its part: so
memory holds a few parts, however many records there are. A record that cannot be used raises a `DataError` with its
index, never with its contents or with the words of the data set's own exception.

`loader_workers` in `[data]` of `site.toml` says how many processes read ahead. They are spawned, since a process with
threads cannot be forked safely.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from client.data.inputs import Inputs, joined, mapped, move, named, rows, tensors
from client.data.site_records import Records
from client.task.conversions import conversions
from client.task.probe import form_of
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
        return mapped(lambda *parts: torch.stack(parts), *inputs), torch.stack(targets)

    def _one(self, index: int) -> Batch | Unreadable:
        """Return one record, without the dimension that counts records."""
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
        if not isinstance(item, tuple | list) or len(item) != 2:  # noqa: PLR2004 - inputs and target
            return Unreadable(f"{where} is not a pair; return (inputs, target) from its __getitem__")
        inputs, target = _inputs(item[0], self.example.inputs), _tensor(item[1], self.example.targets)
        if inputs is None or target is None or not self._fits(inputs, target):
            read = f"{_form(item[0], inputs)} and {_form(item[1], target)}"
            wanted = f"{form_of(self.example.inputs)} and {form_of(self.example.targets)}"
            codes = conversions(item[0], item[1], (self.example.inputs, self.example.targets))
            how = f", for example with {' and '.join(codes)} in its __getitem__" if codes else ""
            return Unreadable(f"{where} is {read}, but the example has {wanted}; correct one of the two{how}")
        for label, part in (*named(inputs).items(), ("target", target)):
            if not bool(part.isfinite().all()):
                return Unreadable(
                    f"{where} has numbers in its {label} that are not finite; correct the record, or the task's scaling"
                )
        return mapped(Tensor.detach, inputs), target.detach()

    def _fits(self, inputs: Inputs, target: Tensor) -> bool:
        pairs = zip((*tensors(inputs), target), (*tensors(self.example.inputs), self.example.targets), strict=True)
        return all(
            (own.dtype, own.shape, own.layout) == (made_up.dtype, made_up.shape[1:], torch.strided)
            for own, made_up in pairs
        )


def _inputs(value: Any, example: Inputs) -> Inputs | None:  # noqa: ANN401 - whatever a data set returns
    """Return one record's inputs in the form of the example, if they are tensors, arrays or numbers."""
    if isinstance(example, Tensor):
        return _tensor(value, example)
    try:
        keys = list(example) if isinstance(example, dict) else range(len(example))
        parts = [_tensor(value[key], example[key]) for key in keys] if len(value) == len(keys) else [None]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None
    if any(part is None for part in parts):
        return None
    return dict(zip(keys, parts, strict=True)) if isinstance(example, dict) else tuple(parts)  # type: ignore[arg-type]  # none is None


def _tensor(value: object, example: Tensor) -> Tensor | None:
    """Return a tensor; a plain number gets the type of the example's."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic):
        try:
            return torch.as_tensor(value)
        except TypeError:  # texts and objects
            return None
    if isinstance(value, bool | int) or (isinstance(value, float) and example.is_floating_point()):
        return torch.tensor(value, dtype=example.dtype)
    return None


def _form(value: object, read: Inputs | None) -> str:
    """Return the form of a record's part, as if it were a batch of one."""
    return form_of(value) if read is None else form_of(mapped(lambda tensor: tensor.unsqueeze(0), read))


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

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the parts to read, as the loader's sampler."""
        return iter(self._parts)

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
        self._parts = [chunk for of_part in chunks for chunk in of_part]
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
            batch_sampler=self,
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
