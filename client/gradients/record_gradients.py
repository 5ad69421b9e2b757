"""Per-record gradients of one parameter, kept as products and written out only where needed.

Book-keeping (Bu et al., 2022, section 3) needs every record's squared norm and, once the clipping factors are known,
the weighted sum. For a linear map with inputs a and gradients g of its outputs, a record's gradient is g aᵀ. With one
row per record, its norm is |a| |g|, and the gradient itself need not be computed.

A norm that comes out too small clips too little. So every norm is computed from the numbers that are summed, or rounded
up:

- With several rows per record (time steps, pixels, words), "ghost" norms from the Gram matrices of a and g would need
  less memory, but they are differences of large numbers. Here such gradients are written out, for some records at a
  time if all together are too large.
- Adding ten million equal numbers one by one in float32 loses a percent of the norm. Here they are added in blocks, and
  the blocks in float64.
- Squares below 1e-38 are lost in float32. That matters only for norms that are multiplied.
- Norms over 1e19 have no square in float32: such records count as not finite, and add nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = 1 << 24  # values of gradients that are kept until the clipping factors are known
_BLOCK = 1024  # values whose squares are added in float32
_LOST = torch.finfo(torch.float32).tiny  # the most that one square can lose


class RecordGradients(ABC):
    """The records' gradients of one parameter. All tensors are float32."""

    @property
    def values(self) -> int:
        """The number of values that it keeps in memory."""
        return sum(tensor.numel() for tensor in vars(self).values() if isinstance(tensor, Tensor))

    @abstractmethod
    def squares(self) -> Tensor:
        """Return the squared norms of the records' gradients, `(n,)`, float64."""

    @abstractmethod
    def summed(self, factors: Tensor) -> Tensor:
        """Return the sum of gradients weighted by `(n,)`, with as many values as the parameter."""

    @abstractmethod
    def of(self, records: Tensor) -> RecordGradients:
        """Return the gradients of the records chosen by `(n,)` booleans."""

    @abstractmethod
    def averaged(self, copies: int) -> RecordGradients:
        """Return the mean of the gradients of every so many rows, which are copies of one record: `(n / copies,)`."""


def _flat(rows: Tensor) -> Tensor:
    """Return `(n, ...)` as `(n, d)`, and `(n,)` as `(n, 1)`."""
    return rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)


def _squares(rows: Tensor) -> Tensor:
    rows = _flat(rows)
    if rows.shape[1] <= _BLOCK:
        short_squares: Tensor = torch.linalg.vector_norm(rows, dim=1).double().square()
        return short_squares
    whole = rows.shape[1] - rows.shape[1] % _BLOCK
    norms = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _BLOCK)), dim=2)
    squares: Tensor = norms.double().square().sum(1)
    return squares + _squares(rows[:, whole:])


@dataclass(frozen=True)
class Rows(RecordGradients):
    """Gradients written out: `(n, ...)`."""

    rows: Tensor

    @cached_property
    def _squares(self) -> Tensor:
        return _squares(self.rows)

    @override
    def squares(self) -> Tensor:
        return self._squares

    @override
    def summed(self, factors: Tensor) -> Tensor:
        return factors @ _flat(self.rows)

    @override
    def of(self, records: Tensor) -> Rows:
        return Rows(self.rows[records])

    @override
    def averaged(self, copies: int) -> Rows:
        return Rows(self.rows.unflatten(0, (-1, copies)).mean(1))


@dataclass(frozen=True)
class Outer(RecordGradients):
    """g aᵀ, with one row per record: inputs `(n, d)`, gradients of outputs `(n, p)`."""

    inputs: Tensor
    gradients: Tensor

    @cached_property
    def bias(self) -> Rows:
        """The gradients of a bias that is added to the product; its norms are computed once for both."""
        return Rows(self.gradients)

    @override
    def squares(self) -> Tensor:
        inputs = _squares(self.inputs) + self.inputs.shape[1] * _LOST
        return inputs * (self.bias.squares() + self.gradients.shape[1] * _LOST)

    @override
    def summed(self, factors: Tensor) -> Tensor:
        return (self.gradients * factors.unsqueeze(1)).T @ self.inputs

    @override
    def of(self, records: Tensor) -> Outer:
        return Outer(self.inputs[records], self.gradients[records])

    @override
    def averaged(self, copies: int) -> Product:
        inputs, gradients = (
            tensor.unflatten(0, (-1, copies)).transpose(1, 2).unsqueeze(1) for tensor in (self.inputs, self.gradients)
        )
        return Product(inputs, gradients / copies)


@dataclass(frozen=True)
class Product(RecordGradients):
    """Σ g aᵀ over a record's rows, in groups: inputs `(n, groups, d, t)`, gradients of outputs `(n, groups, p, t)`."""

    inputs: Tensor
    gradients: Tensor

    @cached_property
    def _kept(self) -> Rows | None:
        """The gradients written out, if they are few enough to keep."""
        if len(self.inputs) > self._at_a_time:
            return None
        return Rows(self.gradients @ self.inputs.transpose(2, 3))

    @property
    def _at_a_time(self) -> int:
        """The number of records whose gradients may be written out at a time."""
        return max(1, KEPT // (self.gradients.shape[1:3].numel() * self.inputs.shape[2]))

    def _in_parts(self) -> Iterator[Rows]:
        for gradients, inputs in zip(
            *(tensor.split(self._at_a_time) for tensor in (self.gradients, self.inputs)), strict=True
        ):
            yield Rows(gradients @ inputs.transpose(2, 3))

    @cached_property
    def _squares(self) -> Tensor:
        return self._kept.squares() if self._kept else torch.cat([part.squares() for part in self._in_parts()])

    @property
    @override
    def values(self) -> int:
        return super().values + (self._kept.values if self._kept else 0)

    @override
    def squares(self) -> Tensor:
        return self._squares

    @override
    def summed(self, factors: Tensor) -> Tensor:
        if self._kept:
            return self._kept.summed(factors)
        total = self.gradients.new_zeros(self.gradients.shape[1:3].numel() * self.inputs.shape[2])
        before = self._squares.split(self._at_a_time)
        for part, weights, squares in zip(self._in_parts(), factors.split(self._at_a_time), before, strict=True):
            again = part.squares()  # equal, unless a device computes the same product in another way
            smaller = torch.where(again > squares, (squares / again).sqrt(), 1.0)
            total += part.summed(weights * smaller.float())
        return total

    @override
    def of(self, records: Tensor) -> RecordGradients:
        return self._kept.of(records) if self._kept else Product(self.inputs[records], self.gradients[records])

    @override
    def averaged(self, copies: int) -> Product:
        inputs, gradients = (
            tensor.unflatten(0, (-1, copies)).permute(0, 2, 3, 1, 4).flatten(3)
            for tensor in (self.inputs, self.gradients)
        )
        return Product(inputs, gradients / copies)


@dataclass(frozen=True)
class Places(RecordGradients):
    """Gradients of some rows of a table `(size, d)`: for `count` records, records and rows `(k,)`, gradients `(k, d)`.

    No record has the same row twice.
    """

    count: int
    size: int
    records: Tensor
    rows: Tensor
    gradients: Tensor

    @classmethod
    def looked_up(cls, indices: Tensor, gradients: Tensor, size: int) -> Places:
        """Sum the gradients `(n, t, d)` of rows `(n, t)` that a record looks up more than once."""
        pairs = torch.arange(len(indices), device=indices.device).unsqueeze(1) * size + indices
        pairs, place = torch.unique(pairs, return_inverse=True)
        summed = gradients.new_zeros((len(pairs), gradients.shape[2]))
        summed.index_add_(0, place.flatten(), gradients.flatten(0, 1))
        return cls(len(indices), size, pairs // size, pairs % size, summed)

    @override
    def squares(self) -> Tensor:
        squares = _squares(self.gradients)
        return squares.new_zeros(self.count).index_add_(0, self.records, squares)

    @override
    def summed(self, factors: Tensor) -> Tensor:
        total = self.gradients.new_zeros((self.size, self.gradients.shape[1]))
        return total.index_add_(0, self.rows, self.gradients * factors[self.records].unsqueeze(1))

    @override
    def of(self, records: Tensor) -> Places:
        kept, numbers = records[self.records], records.cumsum(0) - 1
        return Places(int(records.sum()), self.size, numbers[self.records[kept]], self.rows[kept], self.gradients[kept])

    @override
    def averaged(self, copies: int) -> Places:
        pairs, place = torch.unique(self.records // copies * self.size + self.rows, return_inverse=True)
        summed = self.gradients.new_zeros((len(pairs), self.gradients.shape[1]))
        summed.index_add_(0, place, self.gradients / copies)
        return Places(self.count // copies, self.size, pairs // self.size, pairs % self.size, summed)
