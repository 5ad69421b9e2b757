"""Partition records among heterogeneous sites: each label's records by shares drawn from a Dirichlet distribution.

This is the usual way to make federated data of any heterogeneity (Hsu, Qi and Brown 2019, arXiv 1909.06335). At a
concentration of 0.5, most sites have hardly any records of some labels, and sizes differ by a factor of several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST = 10  # records at a site; a draw with a smaller site is repeated
_TRIES = 1000


def dirichlet(labels: NDArray[np.int64], sites: int, concentration: float, seed: int) -> list[NDArray[np.intp]]:
    """Partition records by their labels `(n,)`; return each site's indices, in random order.

    Every record is at exactly one site. With the same version of NumPy, the same seed gives the same parts.

    Raises:
        ConfigError: if there are too few records for this many sites.
    """
    draw = np.random.default_rng(seed)
    for _ in range(_TRIES):
        dealt = dealt_once(labels, sites, concentration, draw)
        if min(map(len, dealt)) >= _LEAST:
            return dealt
    msg = f"{len(labels)} records are too few for {sites} sites with at least {_LEAST} each; use fewer sites"
    raise ConfigError(msg)


def dealt_once(
    labels: NDArray[np.int64], sites: int, concentration: float, draw: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Return each site's indices, in random order, from one draw; a site may have none."""
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        records = draw.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(draw.dirichlet(np.full(sites, concentration)))[:-1] * len(records)
        for part, some in zip(parts, np.split(records, ends.astype(int)), strict=True):
            part.append(some)
    return [draw.permutation(np.concatenate(part)) for part in parts]
