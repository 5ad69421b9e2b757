"""Play rounds in one process that has all sites' records, for benchmarks, baselines and audits.

Training and codec are those of sites. Keys, ledgers and the network are left out unless the caller adds them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from client.work.local import train_locally
from privacy.codec.packing import PackedStream, pack, pack_with_share, unpack
from privacy.codec.update import Model, Update, privatise
from privacy.noise.noise_shares import share_for
from privacy.noise.randomness import Randomness
from strategies.advance import State, advance, average
from strategies.algorithm import PLAIN, LocalRound, Run
from strategies.averaging import include, next_bound
from strategies.registry import algorithm_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self

    from numpy.typing import NDArray

    from client.work.training import Study
    from privacy.codec.packing import Packing
    from privacy.codec.update import PackedUpdate
    from privacy.ledger.ledger import Charge
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings
    from strategies.algorithm import LocalSolver, Values


def rounds(
    start: Model,
    count: int,
    mean: Callable[[int, Model], Update],
    apply: Callable[[Model, Update], Model] = average,
) -> Iterator[Model]:
    """Play `count` rounds: yield the model before the first round and after each.

    Args:
        start: the model before the first round.
        count: number of rounds.
        mean: returns the mean of the sites' updates, given the round's number, from 1, and the model it starts from.
        apply: returns the next round's model, given a model and a mean.
    """
    yield start
    for number in range(1, count + 1):
        start = apply(start, mean(number, start))
        yield start


def result(models: Iterable[Model], settings: RunSettings) -> Model:
    """Return the model with which a run ends: the last, or the mean of the last ones, as the run says.

    Args:
        models: the model before the first round and after each, as `rounds` yields them.
        settings: of the run.
    """
    averaging, averaged, last = settings.kind.mean, 0, None
    for number, model in enumerate(models):
        averaged += averaging is not None and number > 0 and averaging.includes(number, settings.rounds)
        if last is not None and averaging and averaged > 1:
            include(last.vector, model.vector, averaging.window(averaged))
        else:
            last = Model(model.vector.copy(), model.layout)
    if last is None:
        msg = "there are no models"
        raise ValueError(msg)
    return last


@dataclass(frozen=True)
class Sites:
    """The sites of a run, by name, and their weights in a mean."""

    studies: Mapping[str, Study]
    weights: Mapping[str, float]
    manifest: Manifest
    randomness: Callable[[str, int, str], Randomness]  # by site, round and purpose: "training" or "rounding"
    local: dict[str, Mapping[str, NDArray[np.float32]]] = field(default_factory=dict)  # what stays at each site

    @classmethod
    def seeded(cls, studies: Mapping[str, Study], weights: Mapping[str, float], manifest: Manifest, seed: int) -> Self:
        """Return sites whose randomness is derived from a seed."""
        return cls(studies, weights, manifest, lambda site, number, use: Randomness.seeded(seed, site, number, 1, use))

    def update(self, site: str, number: int, model: Model, solver: LocalSolver = PLAIN) -> Update:
        """Let a site train for a round."""
        randomness = self.randomness(site, number, "training")
        own = replace(model, local=self.local.get(site, {}))
        update = self.studies[site].release(self.manifest, number, own, randomness, solver)
        self.local[site] = update.local
        return update

    def exact_mean(self, number: int, model: Model) -> Update:
        """Return the exact mean of a round's updates, without a codec."""
        vectors = [self.update(site, number, model).vector for site in self.studies]
        return Update(np.average(vectors, axis=0, weights=list(self.weights.values())).astype(np.float32))


def add_up(updates: Iterable[PackedUpdate]) -> list[NDArray[np.uint64]]:
    """Add up packed updates, block by block, as the server does under encryption."""
    total: list[NDArray[np.uint64]] = []
    for update in updates:
        total = [block if not total else total[place] + block for place, block in enumerate(update.blocks)]
    return total


class PackedMeans:
    """Means of updates packed as integers. Residuals are carried and the range adapts, as at sites.

    Sites train with the run's algorithm; `apply` gives the next round's model.
    """

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
            sites: the run's sites.
            packing: the packing of the first round.
            charge: a charge, without which nothing is packed.
            carries: whether the residual of clipping and rounding is added to a site's next update.
            total: adds up packed updates.
        """
        settings = sites.manifest.settings
        self._sites, self._packing, self._charge, self._total = sites, packing, charge, total
        self._carries, self._ceiling = carries, packing.update_bound
        self._residuals: dict[str, NDArray[np.float32]] = {}
        self._name, self._algorithm = str(settings.strategy["name"]), algorithm_of(sites.manifest, "this simulation")
        self._run = replace(Run.of(settings), weights=sites.weights)
        self._state: State | None = None
        self._own: dict[str, Mapping[str, Values]] = {}

    def __call__(self, number: int, model: Model) -> Update:
        """Return the mean of a round's updates, as the sites decode it."""
        weights, size = list(self._sites.weights.values()), model.layout.size
        packed_updates = {site: self._packed(site, number, model) for site in self._sites.studies}
        mean = unpack(self._total(packed for packed, _ in packed_updates.values()), size, weights, self._packing)
        streams = {site: packed for site, (packed, _) in packed_updates.items() if isinstance(packed, PackedStream)}
        if streams:
            self._packing = replace(self._packing, update_bound=next_bound(mean, len(streams), self._ceiling))
        for site, stream in streams.items():
            if self._algorithm.own:
                self._own[site] = self._algorithm.keep(self._at(site, model), packed_updates[site][1] - stream.residual)
            if self._carries:
                self._residuals[site] = stream.residual
        return mean

    def apply(self, model: Model, mean: Update) -> Model:
        """Return the next round's model, by the run's algorithm."""
        after, self._state = advance(
            self._algorithm, self._run, model, self._state_for(model), mean, self._sites.weights
        )
        return after

    def _packed(self, site: str, number: int, model: Model) -> tuple[PackedUpdate, NDArray[np.float64]]:
        """Return a site's packed update and, if the algorithm has `own` vectors, the vector before packing."""
        sites, weight = self._sites, self._sites.weights[site]
        rounding = sites.randomness(site, number, "rounding")
        if sites.manifest.settings.shares_noise:
            variance, update = share_for(sites.manifest, model).variance, sites.update(site, number, model)
            return pack_with_share(update, self._charge, weight, self._packing, rounding, variance), np.empty(0)
        train = partial(sites.update, site, number, model)
        update = train_locally(self._name, self._algorithm, self._at(site, model), train)
        if site in self._residuals:
            np.add(update.vector, self._residuals[site], out=update.vector)
        whole = update.vector.astype(np.float64) if self._algorithm.own else np.empty(0)
        return pack(privatise(update, self._charge), weight, self._packing, rounding), whole

    def _at(self, site: str, model: Model) -> LocalRound:
        own = self._own.get(site) or {name: np.zeros(model.layout.size) for name in self._algorithm.own}
        return LocalRound(self._run, site, model.vector, self._state_for(model).vectors, own)

    def _state_for(self, model: Model) -> State:
        return self._state or State.start(self._algorithm, model.layout.size)
