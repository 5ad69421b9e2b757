"""The engine `vectorised`: all sites' models train together; no keys, no messages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from privacy.codec.ciphertext import CIPHERTEXT_BYTES
from simulations.study.simulation import Played
from simulations.vectorised.batches import SiteRecords
from simulations.vectorised.sites import VectorisedSites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.state.personal_models import Values
    from privacy.run.manifest import Manifest
    from simulations.study.checkpoints import Checkpoint
    from simulations.study.population import Turnout
    from simulations.study.simulation import Simulation


class Vectorised:
    """Plays rounds over sites that train together."""

    name = "vectorised"

    def __init__(self, manifest: Manifest, why: str = "you asked for it") -> None:
        self.why, self._manifest = why, manifest

    def play(self, simulation: Simulation, begun: Checkpoint) -> Iterator[Played]:
        """Yield each round once it is over."""
        settings, model = simulation.settings, simulation.start()
        noise = simulation.site_noise
        pool, parts = simulation.records.pool, list(simulation.records.parts.values())
        records = SiteRecords.of(pool.inputs, pool.targets, parts).to(simulation.device)
        sites = VectorisedSites(
            simulation.task, simulation.module().to(simulation.device), records, self._manifest, noise
        )
        size = self._manifest.packing.ciphertexts(model.layout.size) * CIPHERTEXT_BYTES
        if begun.number:
            model = begun.model(model)
            try:
                sites.restore(begun.arrays, begun.parts)
            except (KeyError, ValueError, IndexError) as error:
                raise begun.damaged() from error
        try:
            for number in range(begun.number + 1, settings.rounds + 1):
                started = time.perf_counter()
                turnout = simulation.population.turnout(number, noise.sampled(number) if noise else None)
                # Whether there are enough sites depends on who was sampled: private noise may not tell.
                released = noise is not None or len(turnout.delivered) >= settings.cohort.minimum
                if released:
                    model = sites.round(number, model, turnout.delivered)
                seconds = time.perf_counter() - started
                contributors = turnout.delivered if released else turnout.delivered[:0]
                yield Played(
                    number, model, contributors, turnout.charged, released, size * len(contributors), seconds,
                    _problems(turnout, settings.cohort.minimum, released=released), sites.arrays, sites.parts,
                )  # fmt: skip
        finally:
            sites.close()

    def at_sites(self, simulation: Simulation) -> Callable[[str], Values]:
        """Return a function that reads, by a site's name, what stays there: nothing."""
        del simulation
        return lambda _: {}


def _problems(turnout: Turnout, minimum: int, *, released: bool) -> dict[str, str]:
    few = {} if released else {"the sum": f"{len(turnout.delivered)} sites are fewer than the minimum of {minimum}"}
    return turnout.problems | few
