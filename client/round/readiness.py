"""Find out before a round is charged whatever could make it fail: before saying "ready", and at each plan.

    hours    the site's policy lets it train at this time of day
    dates    the roster and the certificate outlast the round
    disk     there is room for everything that the round writes, and the ledger can be written
    records  there are some, and the task can use each of them: `Work.check_records`
    memory   a step on one physical batch of made-up records fits: `Work.check_memory`

Records and memory are checked once per process. The server learns only whether the site takes part.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from client.round.space import needs, space_for
from privacy.crypto.signing import sign
from privacy.errors import ConfigError, RefusedError
from privacy.noise.noise_shares import share_for
from privacy.run.clocks import check_clock, tolerance
from privacy.run.policy import check_hours
from transport.pki import read_certificate
from transport.run_messages import Readiness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.round.admission import AdmittedRun
    from client.site import Site
    from privacy.codec.update import Layout, Model
    from privacy.ledger.ledger_head import SignedHead
    from privacy.run.manifest import Manifest


def get_ready(
    admitted: AdmittedRun, node_id: int, known: SignedHead | None = None, sent: float | None = None
) -> Readiness:
    """Check whether this site can take part in a run, before anything is charged, and sign the answer.

    Args:
        admitted: the run, as this site admitted it.
        node_id: Flower's number for this site.
        known: the latest head of its ledger that the server has.
        sent: the server's time when it asked, in seconds since 1970.

    Raises:
        LedgerError: if the ledger is older than that head, or cannot be written.
        ProtocolError: if the clocks of site and server disagree.
        TaskError: if the task's gradients cannot be computed here.
        DataError: if a record cannot be used, or none is left.
        BudgetError: if the budget left does not cover the run.
        RefusedError: if the run has expired, the site does not train at this time of day, no share of the noise suits
            the model, or a step does not fit in memory.
        StorageError: if a disk has no room for what a round writes.
    """
    site, manifest, now = admitted.site, admitted.manifest, time.time()
    manifest.check_valid(now)
    check_hours(site.settings.policy, site.name)
    seconds = admitted.settings.cohort.round_deadline_seconds
    if sent is not None:  # only the server can tell how long the question travelled
        check_clock(site.name, now, sent, sent + seconds, tolerance(seconds), waited=True)
    admitted.ledger.check_head(known)
    checkpoint = admitted.checkpoint()
    if admitted.run not in admitted.ledger.runs():  # later, each round is checked against the budget separately
        admitted.ledger.check_plan(manifest.run_cost, admitted.limit)
    if admitted.settings.vote and admitted.run not in site.held_out_ledger.runs():
        site.held_out_ledger.check_plan(manifest.votes_cost, site.settings.held_out_limit)
    if admitted.settings.shares_noise:
        _check_share(site, manifest, checkpoint.model)
    site.outbox.last(admitted.run)  # report a damaged file now
    with ready_to_be_charged(admitted, checkpoint.model.layout):
        admitted.work.check_memory(manifest)
    keys = site.keyring.current(site.roster.version)
    unsigned = Readiness(
        site=site.name,
        model=checkpoint.digest,
        size=checkpoint.model.layout.size,
        layout=checkpoint.model.layout.digest,
        update_bound=checkpoint.update_bound,
        epoch=keys.epoch if keys else 0,
        keys=keys.fingerprint if keys else "",
        latest=site.keyring.latest,
        pairs=site.keyring.paired_with(keys),
        clock=now,
        signature=b"",
    )
    signature = sign(site.signing_key, "readiness", unsigned.signed_part(admitted.run, node_id))
    return replace(unsigned, signature=signature)


@contextmanager
def ready_to_be_charged(admitted: AdmittedRun, layout: Layout) -> Iterator[None]:
    """Check everything but memory, and reserve the disk space while the context lasts.

    Raises:
        CloisterError: says what prevents the round; nothing is charged.
    """
    check_hours(admitted.site.settings.policy, admitted.site.name)
    check_dates(admitted.site, admitted.settings.cohort.round_deadline_seconds)
    admitted.work.check_records(admitted.settings)
    admitted.ledger.check_writable()
    with space_for(needs(admitted, layout)):
        yield


def check_dates(site: Site, seconds: float) -> None:
    """Check that a site's roster and certificate outlast a round.

    Raises:
        RefusedError: if they do not.
    """
    ends = {"roster": site.roster.expires}
    certificate = site.place.tls.certificate
    if certificate.exists():  # under Flower's own engines, connections are Flower's
        ends["TLS certificate"] = read_certificate(certificate).not_valid_after_utc.timestamp()
    for paper, end in ends.items():
        if end < time.time() + seconds:
            date = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            msg = (
                f"{site.name}'s {paper} expires on {date}, before a round could end; ask the coordinator for a new one"
            )
            raise RefusedError(msg)


def _check_share(site: Site, manifest: Manifest, model: Model) -> None:
    try:
        share_for(manifest, model)
    except ConfigError as error:  # its message holds only figures that every member may know
        msg = f"{site.name} cannot take part: {error}"
        raise RefusedError(msg) from error
