"""Make new records from others, to cover what a site's records may contain and an example does not.

A mistake may show on some records only: a missing value in the seventh record, the longest sequence of a batch, a value
beyond a threshold. So records are replaced, mixed, repeated, scaled, cut short and given extreme values, each kind in
any record and at any place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from client.data.inputs import Inputs, count, mapped, rows, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Making = Callable[[Inputs], Inputs]
    """Makes records `(n, ...)` of the same form as those given."""

_CODES = (0.0, 1.0, -1.0, 9.0, -9.0, 99.0, -99.0, 999.0, -999.0, -9999.0, 1e6, -1e6)  # codes for missing values
_MOST = (1 << 63) - 1  # the largest integer that torch draws or adds
_FEW = 0.1  # fraction of a record's values that change


@dataclass(frozen=True)
class Variations:
    """Ways to make new records of the same form as given ones.

    Args:
        records: the given records, `(m, ...)`. Each tensor of a tuple or dict varies by itself, but whole records stay
            together in `replaced` and `repeated`.
        generator: generator for random draws; torch's default one is not used.
    """

    records: Inputs
    generator: torch.Generator

    def rows(self, size: int) -> Tensor:
        """Return indices of records `(size,)`: all records in turn, in random order."""
        size_here = len(self)
        turns = [self._permutation(size_here) for _ in range(-(-size // size_here))]
        return torch.cat(turns)[:size]

    def half(self, size: int) -> Tensor:
        """Return a random choice among `size` records, `(size,)` booleans: at least one, and not all of several."""
        return self._permutation(size) < max(1, int(self._integers(size, 1)))

    @property
    def sound(self) -> tuple[Making, ...]:
        """Ways to rearrange given records."""
        return self.replaced, self.repeated

    @property
    def possible(self) -> tuple[Making, ...]:
        """Ways to make new records. A task may fail on them, since a site need not have such records."""
        ways: tuple[Making, ...] = (self.mixed, self.moved, self.shorter, self.extreme)
        real = [tensor.is_floating_point() for tensor in tensors(self.records)]
        ways += (self.scaled, self.absent) if any(real) else ()
        return ways if all(real) else (*ways, self.drawn)

    def any(self, inputs: Inputs) -> Inputs:
        """Return new records, each made in one of the possible ways but `absent`."""
        variants = [make(inputs) for make in self.possible if make != self.absent]
        ways, order = self._integers(len(variants), count(inputs)), torch.arange(count(inputs))
        return mapped(lambda *parts: torch.stack(parts)[ways, order], *variants)

    def replaced(self, inputs: Inputs) -> Inputs:
        """Return other given records, drawn at random."""
        return rows(self.records, self._integers(len(self), count(inputs)))

    def repeated(self, inputs: Inputs) -> Inputs:
        """Return one given record, repeated."""
        single = self.replaced(rows(inputs, slice(1)))
        return mapped(lambda tensor, of: tensor.expand_as(of).clone(), single, inputs)

    def mixed(self, inputs: Inputs) -> Inputs:
        """Return records that take each value from any record, at the same place."""
        return mapped(self._mixed, inputs, self.records)

    def _mixed(self, inputs: Tensor, records: Tensor) -> Tensor:
        flat = _rows(records)
        return flat.gather(0, self._integers(len(flat), *_rows(inputs).shape)).view_as(inputs)

    def moved(self, inputs: Inputs) -> Inputs:
        """Return records in which some values come from any record, at any place."""
        return mapped(self._moved, inputs, self.records)

    def _moved(self, inputs: Tensor, records: Tensor) -> Tensor:
        values = records.flatten()
        return torch.where(self._some(inputs), values[self._integers(len(values), *inputs.shape)], inputs)

    def extreme(self, inputs: Inputs) -> Inputs:
        """Return records in which some values are the smallest or largest of all, or codes for missing values."""
        return mapped(self._extreme, inputs, self.records)

    def _extreme(self, inputs: Tensor, records: Tensor) -> Tensor:
        low, high = records.amin(), records.amax()
        place = records.amin(0), records.amax(0)
        most = torch.finfo(inputs.dtype).max if inputs.is_floating_point() else 0
        codes = [torch.full_like(place[0], code) for code in _CODES if abs(code) <= most] if most else []
        choices = torch.stack([*place, low.expand_as(place[0]), high.expand_as(place[0]), *codes])
        chosen = _rows(choices).gather(0, self._integers(len(choices), *_rows(inputs).shape)).view_as(inputs)
        return torch.where(self._some(inputs), chosen, inputs)

    def shorter(self, inputs: Inputs) -> Inputs:
        """Return records cut short along their first dimension, and padded with zeros or with other records' ends."""
        return mapped(self._shorter, inputs, self.records)

    def _shorter(self, inputs: Tensor, records: Tensor) -> Tensor:
        if inputs.dim() == 1:
            return records[self._integers(len(records), len(inputs))]
        long = inputs.shape[1]
        ends = self._integers(long, len(inputs)) + 1
        after = torch.arange(long) >= ends.unsqueeze(1)
        last = records[self._integers(len(records), len(inputs))][:, -1:]
        if self._integers(2, 1).item():
            last = torch.zeros_like(last)
        return torch.where(after.view(len(inputs), long, *[1] * (inputs.dim() - 2)), last, inputs)

    def scaled(self, inputs: Inputs) -> Inputs:
        """Return records with real numbers scaled by factors between 1/64 and 64, of either sign."""
        return mapped(lambda tensor: self._scaled(tensor) if tensor.is_floating_point() else tensor, inputs)

    def _scaled(self, inputs: Tensor) -> Tensor:
        by = torch.exp2(torch.rand(len(inputs), generator=self.generator) * 12 - 6)
        by = torch.where(torch.rand(len(inputs), generator=self.generator) < 1 / 2, by, -by)
        return inputs * by.view(-1, *[1] * (inputs.dim() - 1)).to(inputs.dtype)

    def absent(self, inputs: Inputs) -> Inputs:
        """Return records in which some real numbers are NaN."""
        return mapped(
            lambda tensor: tensor.masked_fill(self._some(tensor), torch.nan) if tensor.is_floating_point() else tensor,
            inputs,
        )

    def drawn(self, inputs: Inputs) -> Inputs:
        """Return records with integers drawn between the smallest and the largest of all."""
        return mapped(self._drawn, inputs, self.records)

    def _drawn(self, inputs: Tensor, records: Tensor) -> Tensor:
        if inputs.is_floating_point():
            return inputs
        low, high = int(records.amin()), int(records.amax())
        return (self._integers(min(high - low + 1, _MOST), *inputs.shape) + low).to(inputs.dtype)

    def beyond(self, inputs: Inputs) -> tuple[Inputs, ...]:
        """Return records with values that no given record has, if the type of number has any."""
        one, other = self.any(inputs), self.any(inputs) if _has_real(inputs) else inputs
        return mapped(_little_more, one), mapped(_much_more, other, inputs, self.records)

    def _some(self, inputs: Tensor) -> Tensor:
        fraction = max(_FEW, 1 / max(1, inputs[0].numel()))
        return torch.rand(inputs.shape, generator=self.generator) < fraction

    def __len__(self) -> int:
        return count(self.records)

    def _integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self.generator)

    def _permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self.generator)


def _has_real(inputs: Inputs) -> bool:
    return any(tensor.is_floating_point() for tensor in tensors(inputs))


def _little_more(varied: Tensor) -> Tensor:
    return varied * 1.01 if varied.is_floating_point() else varied


def _much_more(varied: Tensor, inputs: Tensor, records: Tensor) -> Tensor:
    """Return numbers far beyond all given ones: real ones from those made, others from the inputs."""
    if inputs.is_floating_point():
        return varied * 97.3
    if inputs.dtype is torch.bool:
        return ~inputs
    span = int(records.amax()) - int(records.amin()) + 1
    return (inputs.long() + min(span, _MOST)).to(inputs.dtype)


def _rows(inputs: Tensor) -> Tensor:
    """Flatten each record: `(n, values)`."""
    return inputs.reshape(len(inputs), -1)
