"""Run one site alone in a scratch folder: with a scratch ledger, real training and codec, and no network.

The parts are the real ones (`client.round.train_round.train_private`, `pack`, `unpack`), so results hold at the site.
Encryption and the sum over other sites are left out: they come after the noise and are exact. An audit observes this
from outside, and never touches the budget of the people in a site's records.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from client.round.admission import Round
from client.round.train_round import train_private
from client.settings import read_site
from client.site import Site
from client.work.local import keep_own, local_round
from privacy.codec.packing import pack, unpack
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan
from server.settings import read_consortium, read_run
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.keyless_rounds import rounds
from strategies.advance import advance
from strategies.algorithm import Run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from privacy.accounting.accounting import Mechanism
    from privacy.codec.update import Model, PrivateUpdate, Update
    from privacy.run.manifest import SignedRun
    from privacy.run.settings import RunSettings

_HOUR = 3600.0


@dataclass(frozen=True)
class Scratch:
    """A consortium for one audit: sites with keys, permissive policies, and a signed run."""

    sites: dict[str, Site]
    run: SignedRun

    @classmethod
    def create(cls, folder: Path, settings: RunSettings, file: str, device: str = "auto") -> Scratch:
        """Make a folder in `folder` for every site of the run; each expects its records there in `file`."""
        federation = Federation.create(folder, tuple(settings.cohort.sizes), consortium="scratch")
        terms = SiteTerms(
            collusion_resistant=settings.encryption.collusion_resistant,
            tasks=(settings.task,), epsilon=np.inf, maximum_epsilon=np.inf, minimum_noise_multiplier=0.0,
            held_out=0.0, strategies=(str(settings.strategy["name"]),), file=file, device=device,
        )  # fmt: skip
        for name in federation.sites:
            federation.write_settings(name, "localhost:1", terms)
        run = read_run(federation.sign(settings), read_consortium(federation.server).roster())
        return cls({name: Site(read_site(path)) for name, path in federation.paths.items()}, run)

    def rounds(self, name: str) -> Iterator[Model]:
        """Take a site through all rounds of the run; yield the model before the first round and after each."""
        site, manifest, weight = self.sites[name], self.run.manifest, self.run.manifest.weight(name)
        checkpoint = site.checkpoint(manifest, self.run.digest)
        packing = replace(manifest.packing, cohort=1)
        algorithm, fixed, now = site.algorithm(manifest), Run.of(manifest.settings), checkpoint

        def mean(number: int, model: Model) -> Update:
            current = Round(site, manifest, self.run.digest, algorithm, self._plan(site, number, model))
            own = site.personal(manifest, self.run.digest, now.model)
            before = replace(now, round=number - 1, model=own)
            private = train_private(current, before)
            whole = private.vector.astype(np.float64)
            packed = pack(private, weight, packing, Randomness.fresh())
            decoded = unpack(packed.blocks, model.layout.size, [weight], packing)
            site.residuals.keep(current.plan, packed.residual)
            site.residuals.settle(current.plan, contributed=True)
            site.own_parameters.settle(current.plan, contributed=True)
            if algorithm.own:
                keep_own(current, local_round(current, before), whole - packed.residual)
                site.own.settle(current.plan, contributed=True)
            return decoded

        def apply(model: Model, mean: Update) -> Model:
            nonlocal now
            after, state = advance(algorithm, fixed, model, now.state, mean, {name: weight})
            now = replace(now, model=after, state=state)
            return after

        return rounds(checkpoint.model, manifest.settings.rounds, mean, apply)

    def first_update(self, name: str) -> PrivateUpdate:
        """Return a site's update of the first round, `(parameters,)`, before it is encoded."""
        site, manifest = self.sites[name], self.run.manifest
        checkpoint = site.checkpoint(manifest, self.run.digest)
        plan = self._plan(site, 1, checkpoint.model)
        return train_private(Round(site, manifest, self.run.digest, site.algorithm(manifest), plan), checkpoint)

    def charged(self, name: str) -> list[Mechanism]:
        """Return the mechanisms charged in a site's ledger."""
        return self.sites[name].ledger.mechanisms()

    def _plan(self, site: Site, number: int, model: Model) -> RoundPlan:
        return RoundPlan(
            run=self.run.digest, round=number, attempt=1, cohort=tuple(self.sites), roster_version=site.roster.version,
            epoch=1, keys="0" * 64, minimum_cohort=len(self.sites), deadline=time.time() + _HOUR,
            base_model=model.digest,
        )  # fmt: skip
