"""Admit a message: somebody signed its run whom this site's roster allows to, and this site's policy allows it.

Each message is admitted once. Its handlers get only the result: an `AdmittedRun`, or a `Round` if the message is about
one round.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from privacy.errors import ProtocolError
from privacy.ledger.ledger import Release
from privacy.noise.randomness import Randomness
from privacy.run.policy import check_policy, check_recipients, check_signer
from strategies.registry import check_strategy

if TYPE_CHECKING:
    from client.site import Site
    from client.state.checkpoint import Checkpoint
    from client.work.work import Work
    from privacy.ledger.ledger import Budget, Ledger
    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from privacy.run.settings import RunSettings
    from strategies.algorithm import Algorithm


@dataclass(frozen=True)
class AdmittedRun:
    """A run that somebody signed who may, and that this site's policy allows."""

    site: Site
    manifest: Manifest
    run: str  # the manifest's digest
    algorithm: Algorithm  # says what sites send and how the model is updated
    document: bytes = field(default=b"", kw_only=True, repr=False)  # the signed manifest

    @property
    def settings(self) -> RunSettings:
        """The run's settings, as they were signed."""
        return self.manifest.settings

    @cached_property
    def work(self) -> Work:
        """What the run does with the site's records.

        Raises:
            TaskError: if its task cannot be imported or trained.
        """
        return self.site.work(self.settings)

    @property
    def ledger(self) -> Ledger:
        """The ledger to which its rounds are charged."""
        return self._account[0]

    @property
    def limit(self) -> Budget:
        """The budget that limits every charge."""
        return self._account[1]

    @cached_property
    def _account(self) -> tuple[Ledger, Budget]:
        return self.site.place.account(self.settings.kind)

    def checkpoint(self) -> Checkpoint:
        """Return the site's model: its latest checkpoint, or the model from which the run starts."""
        return self.site.checkpoint(self.manifest, self.run, self.algorithm)

    def before(self) -> Checkpoint:
        """Return the site's model before the last round that it opened, in a run with votes."""
        return self.site.before(self.manifest, self.run)

    def round(self, plan: RoundPlan) -> Round:
        """Return the round that the server plans. Training first checks the plan against the manifest."""
        return Round(self.site, self.manifest, self.run, self.algorithm, plan)


@dataclass(frozen=True)
class Round(AdmittedRun):
    """One attempt at one round of an admitted run."""

    plan: RoundPlan

    @property
    def release(self) -> Release:
        """The release that the ledger charges."""
        return Release(self.plan.run, self.plan.round, self.plan.attempt, self.settings.kind.purpose)

    @property
    def weight(self) -> float:
        """The weight of this site's update."""
        return self.manifest.weight(self.site.name)

    def randomness(self, use: str) -> Randomness:
        """Return this site's own randomness; a run with a seed, which has no privacy, gets the same each time."""
        if self.settings.seed is None:
            return Randomness.fresh()
        return Randomness.seeded(self.settings.seed, self.site.name, self.plan.round, self.plan.attempt, use)


def admit(site: Site, document: bytes) -> AdmittedRun:
    """Check who signed a manifest, and check the manifest against the site's policy.

    Raises:
        AuthenticityError: if nobody in the site's roster signed it.
        RefusedError: if whoever did may not sign runs, the policy does not allow the run, the site has not approved it
            but its policy asks for that, or this site lacks its algorithm.
        ProtocolError: if it is for a newer roster than the site's.
    """
    signed = site.open_run(document)
    manifest = signed.manifest
    if manifest.roster_version > site.roster.version:  # a run goes on under newer rosters, without who left
        msg = (
            f"the run is for roster {manifest.roster_version}, and {site.name} has only roster {site.roster.version}; "
            "take the newer one: cloister roster take"
        )
        raise ProtocolError(msg)
    policy = site.settings.policy
    check_signer(policy, signed.signer, site.name)
    check_policy(policy, manifest, site.ledger.cost([manifest.run_cost], site.settings.budget.delta), site.name)
    check_recipients(policy, manifest.settings, site.roster, site.name)
    check_strategy(policy, manifest.settings, site.name)
    if policy.approval:
        site.approvals.check(site.name, signed)
    return AdmittedRun(site, manifest, signed.digest, site.algorithm(manifest), document=document)
