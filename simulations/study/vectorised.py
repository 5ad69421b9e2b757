"""The engine `vectorised`: all sites' models train together; no keys, no messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import CIPHERTEXT_BYTES
from simulations.study.simulation import Played
from simulations.vectorised.batches import SiteRecords
from simulations.vectorised.sites import VectorisedSites, unsuitable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privacy.run.manifest import Manifest
    from simulations.study.simulation import Simulation


class Vectorised:
    """Plays rounds over sites that train together."""

    name = "vectorised"

    def __init__(self, manifest: Manifest, why: str = "you asked for it") -> None:
        self.why, self._manifest = why, manifest

    def play(self, simulation: Simulation) -> Iterator[Played]:
        """Yield each round once it is over."""
        settings, model = simulation.settings, simulation.start()
        pool, parts = simulation.records.pool, list(simulation.records.parts.values())
        records = SiteRecords.of(pool.inputs, pool.targets, parts).to(simulation.device)
        sites = VectorisedSites(simulation.task, simulation.module().to(simulation.device), records, self._manifest)
        draw, minimum = np.random.default_rng(simulation.seed), settings.cohort.minimum
        size = self._manifest.packing.ciphertexts(model.layout.size) * CIPHERTEXT_BYTES
        try:
            for number in range(1, settings.rounds + 1):
                started = time.perf_counter()
                chosen = simulation.participation.sites(len(parts), number, draw)
                released = len(chosen) >= minimum
                if released:
                    model = sites.round(number, model, chosen)
                names = tuple(simulation.sites[site] for site in chosen) if released else ()
                seconds = time.perf_counter() - started
                problems = {} if released else {"": f"{len(chosen)} sites are fewer than the minimum of {minimum}"}
                yield Played(number, model, names, released, size * len(names), seconds, problems)
        finally:
            sites.close()


__all__ = ["Vectorised", "unsuitable"]
