"""Before a round: does this site take part in a run, and is it ready? Nothing is charged for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from client.readiness import ready_to_be_charged
from privacy.clocks import check_clock, tolerance
from privacy.errors import ConfigError, ProtocolError, RefusedError
from privacy.heads import check_head
from privacy.policy import check_policy
from privacy.shared import share_for
from privacy.signing import sign
from strategies.registry import check_strategy
from transport.contents import Readiness

if TYPE_CHECKING:
    from client.site import Site
    from privacy.heads import SignedHead
    from privacy.manifest import Manifest
    from privacy.update import Model
    from strategies.algorithm import Algorithm


@dataclass(frozen=True)
class Accepted:
    """A run that the coordinator signed and this site's policy allows."""

    manifest: Manifest
    run: str
    algorithm: Algorithm


def accept(site: Site, document: bytes) -> Accepted:
    """Check who signed a manifest, and hold it against the site's policy.

    Raises:
        AuthenticityError: if the coordinator did not sign it.
        RefusedError: if the policy does not allow it, or this site does not have its algorithm.
        ProtocolError: if it is for another roster than the site's.
    """
    manifest, run = site.open_manifest(document)
    if manifest.roster_version != site.roster.version:
        msg = (
            f"the run is for roster {manifest.roster_version}, {site.name} has {site.roster.version}; "
            "bring the older one up to date"
        )
        raise ProtocolError(msg)
    check_policy(
        site.settings.policy, manifest, site.ledger.cost([manifest.run_cost], site.settings.budget.delta), site.name
    )
    check_strategy(site.settings.policy, manifest.settings, site.name)
    return Accepted(manifest, run, site.algorithm(manifest))


def get_ready(
    site: Site, document: bytes, node_id: int, known: SignedHead | None = None, sent: float | None = None
) -> Readiness:
    """Say whether this site can take part in a run, before anything is charged. See `client.readiness`.

    Args:
        site: this one.
        document: the signed manifest.
        node_id: Flower's number of this site.
        known: the last head of its ledger that the server has.
        sent: what the server's clock showed as it asked, in seconds since 1970.

    Raises:
        LedgerError: if the ledger is older than that head, or cannot be written.
        ProtocolError: if the clocks of site and server disagree.
        TaskError: if the task's gradients cannot be computed here.
        DataError: if a record cannot be used, or none is left.
        BudgetError: if what is left of the budget does not cover the rest of the run.
        RefusedError: if the run's time is over, or the model suits no share of the noise, or no memory here.
        StorageError: if a disk has no room for what a round writes.
    """
    accepted, now = accept(site, document), time.time()
    accepted.manifest.check_valid(now)
    seconds = accepted.manifest.settings.cohort.round_deadline_seconds
    if sent is not None:  # how long the question was under way is not known here: the server looks at that
        check_clock(site.name, now, sent, sent + seconds, tolerance(seconds))
    ledger, limit = site.account(accepted.manifest.settings)
    check_head(ledger, known, site.signing_key)
    checkpoint = site.checkpoint(accepted.manifest, accepted.run)
    if accepted.run not in ledger.runs():  # later, each round is held against the budget by itself
        ledger.check_plan(accepted.manifest.run_cost, limit)
    if accepted.manifest.settings.vote and accepted.run not in site.held_out_ledger.runs():
        site.held_out_ledger.check_plan(accepted.manifest.votes_cost, site.settings.held_out_limit)
    if accepted.manifest.settings.shares_noise:
        _check_share(site, accepted.manifest, checkpoint.model)
    site.outbox.last(accepted.run)  # if it is damaged, better said now
    with ready_to_be_charged(site, accepted.manifest, checkpoint.model.layout):
        site.check_memory_for(accepted.manifest)
    model, keys = checkpoint.model, site.keyring.current(site.roster.version)
    unsigned = Readiness(
        site=site.name,
        model=checkpoint.digest,
        size=model.layout.size,
        layout=model.layout.digest,
        update_bound=checkpoint.update_bound,
        epoch=keys.epoch if keys else 0,
        keys=keys.fingerprint if keys else "",
        latest=site.keyring.latest,
        pairs=site.keyring.shares_with(keys),
        clock=now,
        signature=b"",
    )
    signature = sign(site.signing_key, "readiness", unsigned.signed_part(accepted.run, node_id))
    return replace(unsigned, signature=signature)


def _check_share(site: Site, manifest: Manifest, model: Model) -> None:
    try:
        share_for(manifest, model)
    except ConfigError as error:  # in figures that every member may know
        msg = f"{site.name} cannot take part: {error}"
        raise RefusedError(msg) from error
