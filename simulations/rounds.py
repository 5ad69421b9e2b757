"""Rounds in one process that has all sites' records: what benchmarks, baselines and audits take runs through.

Training and codec are those of sites. Keys, ledgers and the network are left out, unless whoever calls adds them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from privacy.packing import PackedStream, pack, pack_with_share, unpack
from privacy.shared import share_for
from privacy.update import Update, privatise
from strategies.averaging import average, next_bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from client.study import Study
    from privacy.ledger import Charge
    from privacy.manifest import Manifest
    from privacy.packing import Packing
    from privacy.randomness import Randomness
    from privacy.update import Model, PackedUpdate


def rounds(
    start: Model,
    count: int,
    mean: Callable[[int, Model], Update],
    apply: Callable[[Model, Update], Model] = average,
) -> Iterator[Model]:
    """Take a model through so many rounds: yield it before the first, and after each.

    Args:
        start: the model before the first round.
        count: of the rounds.
        mean: makes the mean of the sites' updates, given a round's number, from 1, and the model that they start from.
        apply: makes of a model and a mean the next round's model.
    """
    yield start
    for number in range(1, count + 1):
        start = apply(start, mean(number, start))
        yield start


@dataclass(frozen=True)
class Sites:
    """The sites of a run, by name, and what they weigh in a mean."""

    studies: Mapping[str, Study]
    weights: Mapping[str, float]
    manifest: Manifest
    randomness: Callable[[str, int, str], Randomness]  # of a site, a round and a purpose, "training" or "rounding"

    def updates(self, number: int, model: Model) -> dict[str, Update]:
        """Let every site train for a round."""
        return {
            site: study.release(self.manifest, model, self.randomness(site, number, "training"))
            for site, study in self.studies.items()
        }

    def exact_mean(self, number: int, model: Model) -> Update:
        """Return the mean of a round's updates as they are, without a codec."""
        vectors = [update.vector for update in self.updates(number, model).values()]
        return Update(np.average(vectors, axis=0, weights=list(self.weights.values())).astype(np.float32))


def add_up(updates: Iterable[PackedUpdate]) -> list[NDArray[np.uint64]]:
    """Add up packed updates, block by block, as the server does under encryption."""
    total: list[NDArray[np.uint64]] = []
    for update in updates:
        total = [block if not total else total[place] + block for place, block in enumerate(update.blocks)]
    return total


class PackedMeans:
    """Means of updates that travel as integers. Remainders are carried, and the range follows, as at sites."""

    def __init__(
        self,
        sites: Sites,
        packing: Packing,
        charge: Charge,
        *,
        carries: bool = True,
        total: Callable[[Iterable[PackedUpdate]], Iterable[NDArray[np.uint64]]] = add_up,
    ) -> None:
        """Begin before the first round.

        Args:
            sites: of the run.
            packing: of the first round.
            charge: nothing is packed without one.
            carries: whether what clipping and rounding leave over is added to a site's next update.
            total: adds up packed updates.
        """
        self._sites, self._packing, self._charge, self._total = sites, packing, charge, total
        self._carries, self._ceiling = carries, packing.update_bound
        self._remainders: dict[str, NDArray[np.float32]] = {}

    def __call__(self, number: int, model: Model) -> Update:
        """Return the mean of a round's updates, as the sites decode it."""
        sites, weights = self._sites, list(self._sites.weights.values())
        packed = {site: self._packed(site, number, model, each) for site, each in sites.updates(number, model).items()}
        mean = unpack(self._total(packed.values()), model.layout.size, weights, self._packing)
        streams = {site: each for site, each in packed.items() if isinstance(each, PackedStream)}
        if streams:
            self._packing = replace(self._packing, update_bound=next_bound(mean, len(streams), self._ceiling))
        if self._carries:
            self._remainders = {site: each.remainder for site, each in streams.items()}
        return mean

    def _packed(self, site: str, number: int, model: Model, update: Update) -> PackedUpdate:
        weight, rounding = self._sites.weights[site], self._sites.randomness(site, number, "rounding")
        if self._sites.manifest.settings.shares_noise:
            variance = share_for(self._sites.manifest, model).variance
            return pack_with_share(update, self._charge, weight, self._packing, rounding, variance)
        if site in self._remainders:
            np.add(update.vector, self._remainders[site], out=update.vector)
        return pack(privatise(update, self._charge), weight, self._packing, rounding)
