"""Per-record gradients of one parameter, as the product that they are, without writing them out where that is dearer.

Book-keeping (Bu et al., 2022, section 3) needs two things of them: every record's squared norm, and, once the clipping
factors are known, the sum that they weight. For a linear map of inputs a and gradients g of its outputs, a record's
gradient is g aᵀ; with one row a record its norm is |a| |g|, and its part of the sum never exists by itself.

With several rows a record (time steps, pixels), "ghost" norms from the Gram matrices of a and g would need less memory,
but as differences of large numbers they can come out too small, so that a record is clipped too little. Here such
gradients are written out, and where all together are too large, some records at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

KEPT = 1 << 24  # values of gradients that are kept until the clipping factors are known


class Share(ABC):
    """What records add to the gradient of one parameter. All tensors in float32."""

    @property
    def values(self) -> int:
        """How many values are in memory for it."""
        return sum(each.numel() for each in vars(self).values() if isinstance(each, Tensor))

    @abstractmethod
    def squares(self) -> Tensor:
        """Return the squared norms of the records' gradients, `(n,)`."""

    @abstractmethod
    def summed(self, factors: Tensor) -> Tensor:
        """Return the sum of gradients, weighted by `(n,)`; as many values as the parameter has."""

    @abstractmethod
    def of(self, records: Tensor) -> Share:
        """Return the share of some records, given by `(n,)` booleans."""


def _squares(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return norms.square()


@dataclass(frozen=True)
class Rows(Share):
    """Gradients written out: `(n, ...)`."""

    rows: Tensor

    @override
    def squares(self) -> Tensor:
        return _squares(self.rows)

    @override
    def summed(self, factors: Tensor) -> Tensor:
        return factors @ self.rows.flatten(1)

    @override
    def of(self, records: Tensor) -> Rows:
        return Rows(self.rows[records])


@dataclass(frozen=True)
class Outer(Share):
    """g aᵀ of one row a record: inputs `(n, d)`, gradients of outputs `(n, p)`."""

    inputs: Tensor
    gradients: Tensor

    @override
    def squares(self) -> Tensor:
        return _squares(self.inputs) * _squares(self.gradients)

    @override
    def summed(self, factors: Tensor) -> Tensor:
        return (self.gradients * factors.unsqueeze(1)).T @ self.inputs

    @override
    def of(self, records: Tensor) -> Outer:
        return Outer(self.inputs[records], self.gradients[records])


@dataclass(frozen=True)
class Product(Share):
    """Σ g aᵀ over rows of a record, in groups: inputs `(n, groups, d, t)`, gradients of outputs `(n, groups, p, t)`."""

    inputs: Tensor
    gradients: Tensor

    @cached_property
    def _written_out(self) -> Tensor | None:
        size = self.gradients.shape[:3].numel() * self.inputs.shape[2]
        return self.gradients @ self.inputs.transpose(2, 3) if size <= KEPT else None

    @override
    def squares(self) -> Tensor:
        if self._written_out is not None:
            return _squares(self._written_out)
        one = self.gradients.shape[1:3].numel() * self.inputs.shape[2]
        parts = zip(*(each.split(max(1, KEPT // one)) for each in (self.gradients, self.inputs)), strict=True)
        return torch.cat([_squares(gradients @ inputs.transpose(2, 3)) for gradients, inputs in parts])

    @override
    def summed(self, factors: Tensor) -> Tensor:
        if self._written_out is not None:
            return factors @ self._written_out.flatten(1)
        return torch.einsum("n,ngpt,ngdt->gpd", factors, self.gradients, self.inputs)

    @override
    def of(self, records: Tensor) -> Product:
        return Product(self.inputs[records], self.gradients[records])


@dataclass(frozen=True)
class Lookup(Share):
    """Gradients of an embedding: rows of `size` that records look up `(n, t)`, gradients of what they find `(n, t, d)`.

    Rows that a record looks up more than once add up before the norm is taken.
    """

    indices: Tensor
    gradients: Tensor
    size: int

    @override
    def squares(self) -> Tensor:
        records = torch.arange(len(self.indices), device=self.indices.device).unsqueeze(1)
        pairs, place = torch.unique(records * self.size + self.indices, return_inverse=True)
        summed = self.gradients.new_zeros((len(pairs), self.gradients.shape[2]))
        summed.index_add_(0, place.flatten(), self.gradients.flatten(0, 1))
        return self.gradients.new_zeros(len(self.indices)).index_add_(0, pairs // self.size, _squares(summed))

    @override
    def summed(self, factors: Tensor) -> Tensor:
        weighted = self.gradients * factors.view(-1, 1, 1)
        found = self.gradients.new_zeros((self.size, self.gradients.shape[2]))
        return found.index_add_(0, self.indices.flatten(), weighted.flatten(0, 1))

    @override
    def of(self, records: Tensor) -> Lookup:
        return Lookup(self.indices[records], self.gradients[records], self.size)
