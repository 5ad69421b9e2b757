"""A site's records as one value, wherever they are: any of them can be read by its number.

InMemory   tensors, on the device that trains
Stored     a map-style `torch.utils.data.Dataset`: see `client.data.stored`
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from client.data.inputs import Inputs, call, count, device_of, joined, mapped, move, rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from client.data.inputs import Batch


class Records(ABC):
    """A site's records, numbered from 0."""

    @abstractmethod
    def __len__(self) -> int:
        """Return their number."""

    @property
    @abstractmethod
    def in_memory(self) -> bool:
        """Whether reading them costs nothing."""

    @abstractmethod
    def select(self, chosen: Tensor) -> Batch:
        """Read some records, in this order.

        Args:
            chosen: their numbers, `(k,)`; k may be 0.

        Returns:
            Inputs and targets `(k, ...)`, on the device.

        Raises:
            DataError: if a record cannot be read; names it.
        """

    @abstractmethod
    def subset(self, chosen: Tensor) -> Records:
        """Return some of these records, without reading them: numbers `(k,)`."""

    @abstractmethod
    def to(self, device: torch.device) -> Records:
        """Return the same records, to be read to a device."""

    def parts(self, chosen: Tensor, size: int) -> Iterator[Batch]:
        """Read some records `(k,)`, at most `size` at a time. Without any there is one part, which is empty.

        Raises:
            DataError: as `select` does.
        """
        for part in chosen.split(size) if chosen.shape[0] > size else (chosen,):
            yield self.select(part)

    def in_order(self, size: int) -> Iterator[tuple[int, Batch]]:
        """Read all records, at most `size` at a time, each part with the number of its first record.

        Raises:
            DataError: as `select` does.
        """
        if len(self):
            starts = range(0, len(self), size)
            yield from zip(starts, self.parts(torch.arange(len(self)), size), strict=True)

    def whole(self) -> Batch:
        """Read all records.

        Raises:
            DataError: as `select` does.
        """
        return self.select(torch.arange(len(self)))


@dataclass(frozen=True)
class InMemory(Records):
    """Records that are tensors: inputs and targets `(n, ...)`, on one device."""

    inputs: Inputs
    targets: Tensor

    @override
    def __len__(self) -> int:
        return count(self.inputs)

    @property
    @override
    def in_memory(self) -> bool:
        return True

    @override
    def select(self, chosen: Tensor) -> Batch:
        chosen = chosen.to(device_of(self.inputs))
        return mapped(lambda each: each.index_select(0, chosen), self.inputs), self.targets.index_select(0, chosen)

    @override
    def subset(self, chosen: Tensor) -> InMemory:
        return InMemory(*self.select(chosen))

    @override
    def to(self, device: torch.device) -> InMemory:
        return InMemory(move(self.inputs, device), self.targets.to(device))

    @override
    def parts(self, chosen: Tensor, size: int) -> Iterator[Batch]:
        return super().parts(chosen.to(device_of(self.inputs)), size)

    @override
    def in_order(self, size: int) -> Iterator[tuple[int, Batch]]:
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield start, (rows(self.inputs, part), self.targets[part])

    @override
    def whole(self) -> Batch:
        return self.inputs, self.targets


def records_of(records: Records | Batch) -> Records:
    """Return records as one value; a batch stays in memory."""
    return records if isinstance(records, Records) else InMemory(*records)


def predictions(model: nn.Module, records: Records, at_once: int) -> tuple[Tensor, Tensor]:
    """Run a model on all records, without gradients.

    Args:
        model: on the records' device.
        records: at least one. Those in memory are computed in one batch.
        at_once: the number of records read at a time, if they are not in memory.

    Returns:
        Outputs and targets `(n, ...)`.

    Raises:
        DataError: if a record cannot be read.
    """
    batches = []
    with torch.no_grad():
        for _, (inputs, targets) in records.in_order(len(records) if records.in_memory else at_once):
            batches.append((call(model, inputs), targets))
    if len(batches) == 1:
        return batches[0]
    return torch.cat([outputs for outputs, _ in batches]), torch.cat([targets for _, targets in batches])


def pooled(several: Sequence[Records]) -> InMemory:
    """Read several sites' records into one."""
    batches = [findings.whole() for findings in several]
    return InMemory(joined([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches]))
