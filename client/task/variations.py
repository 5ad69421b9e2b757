"""Records made from others: what a site's own may look like where an example does not lead.

A mistake may show on some records alone: a missing value that the seventh record has, a sequence that is the longest of
its batch, a value beyond a threshold. So records are replaced, mixed, repeated, scaled, cut short and given extreme
values, every kind in any record and at any place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Making = Callable[[Tensor], Tensor]
    """Makes other records of the form `(n, ...)` of those that it is given."""

_CODES = (0.0, 1.0, -1.0, 9.0, -9.0, 99.0, -99.0, 999.0, -999.0, -9999.0, 1e6, -1e6)  # missing values are so coded
_FEW = 0.1  # of the values of a record


@dataclass(frozen=True)
class Variations:
    """Ways to make records of the form of others.

    Args:
        records: those that exist, `(m, ...)`.
        generator: draws; torch's own one stays as it is.
    """

    records: Tensor
    generator: torch.Generator

    def rows(self, count: int) -> Tensor:
        """Return which `(count,)` of the records to take: all of them in turn, in an order by chance."""
        turns = [self._permutation(len(self.records)) for _ in range(-(-count // len(self.records)))]
        return torch.cat(turns)[:count]

    def half(self, count: int) -> Tensor:
        """Return some of so many records by chance, `(count,)` booleans: one at least, and not all."""
        return self._permutation(count) < max(1, int(self._integers(count, 1)))

    @property
    def sound(self) -> tuple[Making, ...]:
        """Ways to put together records that exist."""
        return self.replaced, self.repeated

    @property
    def possible(self) -> tuple[Making, ...]:
        """Ways to make new records. A task may fail on them, since no site need have such."""
        made = (self.mixed, self.moved, self.shorter, self.extreme)
        return (*made, self.scaled, self.absent) if self.records.is_floating_point() else (*made, self.drawn)

    def any(self, inputs: Tensor) -> Tensor:
        """Return new records, each made in one of the possible ways."""
        made = torch.stack([make(inputs) for make in self.possible if make != self.absent])
        return made[self._integers(len(made), len(inputs)), torch.arange(len(inputs))]

    def replaced(self, inputs: Tensor) -> Tensor:
        """Return other records."""
        return self.records[self._integers(len(self.records), len(inputs))]

    def repeated(self, inputs: Tensor) -> Tensor:
        """Return one and the same record, again and again."""
        return self.replaced(inputs[:1]).expand_as(inputs).clone()

    def mixed(self, inputs: Tensor) -> Tensor:
        """Return records of which each value is that of any record, at the same place."""
        flat = _rows(self.records)
        return flat.gather(0, self._integers(len(flat), *_rows(inputs).shape)).view_as(inputs)

    def moved(self, inputs: Tensor) -> Tensor:
        """Return records in which some values are those of any record, at any place."""
        values = self.records.flatten()
        return torch.where(self._some(inputs), values[self._integers(len(values), *inputs.shape)], inputs)

    def extreme(self, inputs: Tensor) -> Tensor:
        """Return records in which some values are the least or largest of all, or codes of what is missing."""
        low, high = self.records.amin(), self.records.amax()
        place = self.records.amin(0), self.records.amax(0)
        codes = [torch.full_like(place[0], code) for code in _CODES] if inputs.is_floating_point() else []
        choices = torch.stack([*place, low.expand_as(place[0]), high.expand_as(place[0]), *codes])
        chosen = _rows(choices).gather(0, self._integers(len(choices), *_rows(inputs).shape)).view_as(inputs)
        return torch.where(self._some(inputs), chosen, inputs)

    def shorter(self, inputs: Tensor) -> Tensor:
        """Return records whose first dimension ends earlier: what follows is nought, or as the ends of others are."""
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
        """Return records that are louder or softer, by up to 64 times, or turned round."""
        by = torch.exp2(torch.rand(len(inputs), generator=self.generator) * 12 - 6)
        by = torch.where(torch.rand(len(inputs), generator=self.generator) < 1 / 2, by, -by)
        return inputs * by.view(-1, *[1] * (inputs.dim() - 1)).to(inputs.dtype)

    def absent(self, inputs: Tensor) -> Tensor:
        """Return records in which some values are no numbers."""
        return inputs.masked_fill(self._some(inputs), torch.nan)

    def drawn(self, inputs: Tensor) -> Tensor:
        """Return records of integers between the least and the largest of all."""
        low, high = int(self.records.amin()), int(self.records.amax())
        return (self._integers(high - low + 1, *inputs.shape) + low).to(inputs.dtype)

    def _some(self, inputs: Tensor) -> Tensor:
        share = max(_FEW, 1 / max(1, inputs[0].numel()))
        return torch.rand(inputs.shape, generator=self.generator) < share

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def _permutation(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)


def _rows(inputs: Tensor) -> Tensor:
    """Lay each record flat, `(n, values)`."""
    return inputs.reshape(len(inputs), -1)
