"""Make new records from others, to cover what a site's records may contain and an example does not.

A mistake may show on some records only: a missing value in the seventh record, the longest sequence of a batch, a value
beyond a threshold. So records are replaced, mixed, repeated, scaled, cut short and given extreme values, each kind in
any record and at any place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Making = Callable[[Tensor], Tensor]
    """Makes records `(n, ...)` of the same form as those given."""

_CODES = (0.0, 1.0, -1.0, 9.0, -9.0, 99.0, -99.0, 999.0, -999.0, -9999.0, 1e6, -1e6)  # codes for missing values
_MOST = (1 << 63) - 1  # the largest integer that torch draws or adds
_FEW = 0.1  # fraction of a record's values that change


@dataclass(frozen=True)
class Variations:
    """Ways to make new records of the same form as given ones.

    Args:
        records: the given records, `(m, ...)`.
        generator: generator for random draws; torch's default one is not used.
    """

    records: Tensor
    generator: torch.Generator

    def rows(self, count: int) -> Tensor:
        """Return indices of records `(count,)`: all records in turn, in random order."""
        turns = [self._permutation(len(self.records)) for _ in range(-(-count // len(self.records)))]
        return torch.cat(turns)[:count]

    def half(self, count: int) -> Tensor:
        """Return a random choice among `count` records, `(count,)` booleans: at least one, and not all of several."""
        return self._permutation(count) < max(1, int(self._integers(count, 1)))

    @property
    def sound(self) -> tuple[Making, ...]:
        """Ways to rearrange given records."""
        return self.replaced, self.repeated

    @property
    def possible(self) -> tuple[Making, ...]:
        """Ways to make new records. A task may fail on them, since a site need not have such records."""
        made = (self.mixed, self.moved, self.shorter, self.extreme)
        return (*made, self.scaled, self.absent) if self.records.is_floating_point() else (*made, self.drawn)

    def any(self, inputs: Tensor) -> Tensor:
        """Return new records, each made in one of the possible ways but `absent`."""
        made = torch.stack([make(inputs) for make in self.possible if make != self.absent])
        return made[self._integers(len(made), len(inputs)), torch.arange(len(inputs))]

    def replaced(self, inputs: Tensor) -> Tensor:
        """Return other given records, drawn at random."""
        return self.records[self._integers(len(self.records), len(inputs))]

    def repeated(self, inputs: Tensor) -> Tensor:
        """Return one given record, repeated."""
        return self.replaced(inputs[:1]).expand_as(inputs).clone()

    def mixed(self, inputs: Tensor) -> Tensor:
        """Return records that take each value from any record, at the same place."""
        flat = _rows(self.records)
        return flat.gather(0, self._integers(len(flat), *_rows(inputs).shape)).view_as(inputs)

    def moved(self, inputs: Tensor) -> Tensor:
        """Return records in which some values come from any record, at any place."""
        values = self.records.flatten()
        return torch.where(self._some(inputs), values[self._integers(len(values), *inputs.shape)], inputs)

    def extreme(self, inputs: Tensor) -> Tensor:
        """Return records in which some values are the smallest or largest of all, or codes for missing values."""
        low, high = self.records.amin(), self.records.amax()
        place = self.records.amin(0), self.records.amax(0)
        most = torch.finfo(inputs.dtype).max if inputs.is_floating_point() else 0
        codes = [torch.full_like(place[0], code) for code in _CODES if abs(code) <= most] if most else []
        choices = torch.stack([*place, low.expand_as(place[0]), high.expand_as(place[0]), *codes])
        chosen = _rows(choices).gather(0, self._integers(len(choices), *_rows(inputs).shape)).view_as(inputs)
        return torch.where(self._some(inputs), chosen, inputs)

    def shorter(self, inputs: Tensor) -> Tensor:
        """Return records cut short along their first dimension, and padded with zeros or with other records' ends."""
        if inputs.dim() == 1:
            return self.replaced(inputs)
        long = inputs.shape[1]
        ends = self._integers(long, len(inputs)) + 1
        after = torch.arange(long) >= ends.unsqueeze(1)
        last = self.replaced(inputs)[:, -1:]
        if self._integers(2, 1).item():
            last = torch.zeros_like(last)
        return torch.where(after.view(len(inputs), long, *[1] * (inputs.dim() - 2)), last, inputs)

    def scaled(self, inputs: Tensor) -> Tensor:
        """Return records scaled by factors between 1/64 and 64, of either sign."""
        by = torch.exp2(torch.rand(len(inputs), generator=self.generator) * 12 - 6)
        by = torch.where(torch.rand(len(inputs), generator=self.generator) < 1 / 2, by, -by)
        return inputs * by.view(-1, *[1] * (inputs.dim() - 1)).to(inputs.dtype)

    def absent(self, inputs: Tensor) -> Tensor:
        """Return records in which some values are NaN."""
        return inputs.masked_fill(self._some(inputs), torch.nan)

    def drawn(self, inputs: Tensor) -> Tensor:
        """Return records of integers drawn between the smallest and the largest of all."""
        low, high = int(self.records.amin()), int(self.records.amax())
        return (self._integers(min(high - low + 1, _MOST), *inputs.shape) + low).to(inputs.dtype)

    def beyond(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return records with values that no given record has, if the type of number has any."""
        if inputs.is_floating_point():
            return self.any(inputs) * 1.01, self.any(inputs) * 97.3
        if inputs.dtype is torch.bool:
            return self.any(inputs), ~inputs
        span = int(self.records.amax()) - int(self.records.amin()) + 1
        return self.any(inputs), (inputs.long() + min(span, _MOST)).to(inputs.dtype)

    def _some(self, inputs: Tensor) -> Tensor:
        fraction = max(_FEW, 1 / max(1, inputs[0].numel()))
        return torch.rand(inputs.shape, generator=self.generator) < fraction

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def _permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)


def _rows(inputs: Tensor) -> Tensor:
    """Flatten each record: `(n, values)`."""
    return inputs.reshape(len(inputs), -1)
