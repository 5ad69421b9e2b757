"""Per-record gradients of one parameter, as the product that they are, without writing them out where that is dearer.

Book-keeping (Bu et al., 2022, section 3) needs two things of them: every record's squared norm, and, once the clipping
factors are known, the sum that they weight. For a linear map of inputs a and gradients g of its outputs, a record's
gradient is g aᵀ; with one row a record its norm is |a| |g|, and its part of the sum never exists by itself.

With several rows a record (time steps, pixels), "ghost" norms from the Gram matrices of a and g would need less memory,
but as differences of large numbers they can come out too small, so that a record is clipped too little. Here such
gradients are written out, and where all together are too large, some records at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 1 << 24  # values of gradients that are kept until the clipping factors are known


class Share(Protocol):
    """What records add to the gradient of one parameter. All tensors in float32."""

    def squares(self) -> Tensor:
        """Return the squared norms of the records' gradients, `(n,)`."""

    def summed(self, factors: Tensor) -> Tensor:
        """Return the sum of gradients, weighted by `(n,)`; as many values as the parameter has."""

    def of(self, records: Tensor) -> Share:
        """Return the share of some records, given by `(n,)` booleans."""


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows.flatten(1), dim=1).square()


@dataclass(frozen=True)
class Rows:
    """Gradients written out: `(n, ...)`."""

    rows: Tensor

    def squares(self) -> Tensor:
        """As in `Share`."""
        return _squares(self.rows)

    def summed(self, factors: Tensor) -> Tensor:
        """As in `Share`."""
        return factors @ self.rows.flatten(1)

    def of(self, records: Tensor) -> Rows:
        """As in `Share`."""
        return Rows(self.rows[records])


@dataclass(frozen=True)
class Outer:
    """g aᵀ of one row a record: inputs `(n, d)`, gradients of outputs `(n, p)`."""

    inputs: Tensor
    gradients: Tensor

    def squares(self) -> Tensor:
        """As in `Share`."""
        return _squares(self.inputs) * _squares(self.gradients)

    def summed(self, factors: Tensor) -> Tensor:
        """As in `Share`."""
        return (self.gradients * factors.unsqueeze(1)).T @ self.inputs

    def of(self, records: Tensor) -> Outer:
        """As in `Share`."""
        return Outer(self.inputs[records], self.gradients[records])


@dataclass(frozen=True)
class Product:
    """Σ g aᵀ over rows of a record, in groups: inputs `(n, groups, d, t)`, gradients of outputs `(n, groups, p, t)`."""

    inputs: Tensor
    gradients: Tensor

    @cached_property
    def _written_out(self) -> Tensor | None:
        size = self.gradients.shape[:3].numel() * self.inputs.shape[2]
        return self.gradients @ self.inputs.transpose(2, 3) if size <= KEPT else None

    def squares(self) -> Tensor:
        """As in `Share`."""
        if self._written_out is not None:
            return _squares(self._written_out)
        one = self.gradients.shape[1:3].numel() * self.inputs.shape[2]
        parts = zip(*(each.split(max(1, KEPT // one)) for each in (self.gradients, self.inputs)), strict=True)
        return torch.cat([_squares(gradients @ inputs.transpose(2, 3)) for gradients, inputs in parts])

    def summed(self, factors: Tensor) -> Tensor:
        """As in `Share`."""
        if self._written_out is not None:
            return factors @ self._written_out.flatten(1)
        return torch.einsum("n,ngpt,ngdt->gpd", factors, self.gradients, self.inputs)

    def of(self, records: Tensor) -> Product:
        """As in `Share`."""
        return Product(self.inputs[records], self.gradients[records])


@dataclass(frozen=True)
class Lookup:
    """Gradients of an embedding: rows of `size` that records look up `(n, t)`, gradients of what they find `(n, t, d)`.

    Rows that a record looks up more than once add up before the norm is taken.
    """

    indices: Tensor
    gradients: Tensor
    size: int

    def squares(self) -> Tensor:
        """As in `Share`."""
        records = torch.arange(len(self.indices), device=self.indices.device).unsqueeze(1)
        pairs, place = torch.unique(records * self.size + self.indices, return_inverse=True)
        summed = self.gradients.new_zeros((len(pairs), self.gradients.shape[2]))
        summed.index_add_(0, place.flatten(), self.gradients.flatten(0, 1))
        return self.gradients.new_zeros(len(self.indices)).index_add_(0, pairs // self.size, _squares(summed))

    def summed(self, factors: Tensor) -> Tensor:
        """As in `Share`."""
        weighted = self.gradients * factors.view(-1, 1, 1)
        found = self.gradients.new_zeros((self.size, self.gradients.shape[2]))
        return found.index_add_(0, self.indices.flatten(), weighted.flatten(0, 1))

    def of(self, records: Tensor) -> Lookup:
        """As in `Share`."""
        return Lookup(self.indices[records], self.gradients[records], self.size)
