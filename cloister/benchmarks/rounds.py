"""The rounds of a run as sites take them, for benchmarks: training, algorithm, packing. Encryption changes no bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from client.local import train_locally
from privacy.packing import pack, pack_with_share, unpack
from privacy.randomness import Randomness
from privacy.shared import share_for
from privacy.update import privatise
from strategies.advance import State, advance
from strategies.algorithm import LocalRound, Run
from strategies.averaging import next_bound
from strategies.registry import algorithm_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from client.study import Study
    from privacy.ledger import Charge
    from privacy.manifest import Manifest
    from privacy.update import Model


def rounds_of(
    studies: Mapping[str, Study], manifest: Manifest, weights: Mapping[str, float], seed: int, charge: Charge
) -> Iterator[Model]:
    """Yield the model after each round, to which every site contributes.

    Args:
        studies: of all sites.
        manifest: of the run.
        weights: of the sites; as the manifest has them, unless a benchmark tries others.
        seed: of sampling, noise and rounding, as of a run that has this seed.
        charge: under which updates are packed.
    """
    settings, name = manifest.settings, str(manifest.settings.strategy["name"])
    algorithm, run = algorithm_of(manifest, "this benchmark"), replace(Run.of(settings), weights=weights)
    model = next(iter(studies.values())).start(settings)
    size, packing = model.layout.size, manifest.packing
    state = State.start(algorithm, size)
    left = {site: np.zeros(size, np.float32) for site in studies}
    whole: dict[str, NDArray[np.float64]] = {}
    own: dict[str, Mapping[str, Any]] = {site: {key: np.zeros(size) for key in algorithm.own} for site in studies}
    for number in range(1, settings.rounds + 1):
        blocks: list[Any] = []
        for site, study in studies.items():
            luck = partial(Randomness.seeded, seed, site, number, 1)
            make = partial(study.release, manifest, model, luck("training"))
            at = LocalRound(run, site, model.vector, state.vectors, own[site])
            if settings.shares_noise:
                variance = share_for(manifest, model).variance
                packed = pack_with_share(make(), charge, weights[site], packing, luck("rounding"), variance)
            else:
                update = train_locally(name, algorithm, at, make)
                np.add(update.vector, left[site], out=update.vector)
                whole[site], left[site] = (
                    update.vector.astype(np.float64),
                    update.vector,
                )  # where packing leaves the rest
                packed = pack(privatise(update, charge), weights[site], packing, luck("rounding"))
            blocks = [each if not blocks else blocks[place] + each for place, each in enumerate(packed.blocks)]
            if algorithm.own:
                own[site] = algorithm.keep(at, whole[site] - left[site])
        mean = unpack(blocks, size, list(weights.values()), packing)
        if not settings.shares_noise:
            packing = replace(packing, update_bound=next_bound(mean, len(studies), manifest.packing.update_bound))
        model, state = advance(algorithm, run, model, state, mean, weights)
        yield model
