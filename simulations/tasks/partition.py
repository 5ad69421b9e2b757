"""Records dealt out to sites that differ: each label's records by shares drawn from a Dirichlet distribution.

The usual way to make federated data of any heterogeneity (Hsu, Qi and Brown 2019, arXiv 1909.06335): at a concentration
of 0.5, most sites have hardly any records of some labels, and their sizes differ several times over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST = 10  # records of a site; a draw with a smaller one is drawn again
_TRIES = 1000


def dirichlet(labels: NDArray[np.int64], sites: int, concentration: float, seed: int) -> list[NDArray[np.intp]]:
    """Deal records out by their labels `(n,)`; return each site's indices, in random order.

    Every record is at exactly one site. The same seed gives the same parts, under one version of NumPy.

    Raises:
        ConfigError: if there are too few records for so many sites.
    """
    draw = np.random.default_rng(seed)
    for _ in range(_TRIES):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(sites)]
        for label in np.unique(labels):
            found = draw.permutation(np.flatnonzero(labels == label))
            ends = np.cumsum(draw.dirichlet(np.full(sites, concentration)))[:-1] * len(found)
            for part, some in zip(parts, np.split(found, ends.astype(int)), strict=True):
                part.append(some)
        dealt = [draw.permutation(np.concatenate(part)) for part in parts]
        if min(map(len, dealt)) >= _LEAST:
            return dealt
    msg = f"{len(labels)} records cannot be dealt out to {sites} sites with {_LEAST} each; take fewer sites"
    raise ConfigError(msg)
