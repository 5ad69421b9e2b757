"""The records of many sites, and the Poisson batches that sites draw from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.inputs import Inputs, device_of, mapped, move, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from privacy.noise.randomness import Randomness


@dataclass(frozen=True)
class Batches:
    """One batch for each of some sites, padded to the largest."""

    inputs: Inputs  # (S, n, ...)
    targets: Tensor  # (S, n, ...)
    present: Tensor  # (S, n), 1 or 0: padding


@dataclass(frozen=True)
class SiteRecords:
    """The records of many sites, at least one, in one pool. A record may be at several sites."""

    inputs: Inputs  # (N, ...)
    targets: Tensor  # (N, ...)
    order: Tensor  # (M,): the records of the first site, then those of the second, and so on
    starts: Tensor  # (S + 1,): where each site's begin in `order`

    @classmethod
    def of(cls, inputs: Inputs, targets: Tensor, parts: Sequence[NDArray[np.intp]]) -> SiteRecords:
        """Divide a pool of records by the indices of each site's."""
        starts = np.cumsum([0, *map(len, parts)])
        order = np.concatenate(parts) if parts else np.empty(0, np.intp)
        return cls(inputs, targets, torch.from_numpy(order.astype(np.int64)), torch.from_numpy(starts))

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many records each site has, `(S,)`."""
        return self.starts.diff().numpy()

    def to(self, device: torch.device) -> SiteRecords:
        """Return the same records on a device."""
        return SiteRecords(move(self.inputs, device), self.targets.to(device), self.order, self.starts)

    def batches(self, sites: NDArray[np.intp], draw: Draw | None) -> Batches:
        """Return a batch of each site.

        Args:
            sites: their numbers, `(S,)`.
            draw: draws the records that are in the batches; None: all of them are.
        """
        numbers, device = torch.from_numpy(sites), device_of(self.inputs)
        first, sizes = self.starts[numbers], self.sizes[sites]
        places = np.broadcast_to(np.arange(sizes.max(initial=1)), (len(sites), sizes.max(initial=1)))
        present = places < sizes[:, None]
        if draw:
            present &= draw(sizes)
            # Those in the batch come first, in their order; what follows in the longest batch is padding.
            places = np.argsort(~present, axis=1, kind="stable")[:, : present.sum(1).max(initial=1)]
            present = np.take_along_axis(present, places, 1)
        padded = first[:, None] + torch.from_numpy(np.minimum(places, np.maximum(sizes - 1, 0)[:, None]))
        chosen = self.order[padded.clamp_(max=len(self.order) - 1).flatten()].to(device)
        return Batches(
            mapped(lambda tensor: tensor.unflatten(0, places.shape), rows(self.inputs, chosen)),
            self.targets[chosen].unflatten(0, places.shape),
            torch.from_numpy(present).to(device, torch.float32),
        )


Draw = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Draws which records are in the batches of sites with these sizes `(S,)`; returns `(S, largest)`."""


def draw_together(randomness: Randomness, rate: float) -> Draw:
    """Return what draws each record independently, with probability `rate`, from one stream for all sites."""

    def draw(sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        shape = len(sizes), int(sizes.max(initial=1))
        return randomness.uniform(shape[0] * shape[1]).reshape(shape) < rate

    return draw


def draw_as_sites(streams: Sequence[Randomness], rate: float) -> Draw:
    """Return what draws as each site does, from the stream that it has for the round."""

    def draw(sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        drawn = np.zeros((len(sizes), int(sizes.max(initial=1))), np.bool_)
        for row, size, stream in zip(drawn, sizes, streams, strict=True):
            row[:size] = stream.uniform(size) < rate
        return drawn

    return draw
