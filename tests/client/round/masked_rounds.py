"""Parts of a masked round at real sites: plans, updates, signatures, seeds and sums."""

import time
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Context, Error, Message

from client.flower import app, open_site
from client.round.admission import admit
from client.round.aggregate import open_sum
from client.round.masking import agree, reveal
from client.round.readiness import get_ready
from client.round.train_round import train_round
from client.site import Site
from privacy.codec.envelope import Contribution, SignedUpdate, verify_update
from privacy.crypto.summation import EncryptedSum, RunningSum
from privacy.run.plan import RoundPlan
from simulations.engine.federation import Federation
from tests.federations import (
    NOISY,
    SITES,
    Answer,
    keys_of,
    node_of,
    signed_run,
)
from transport.flower import reply

MASKED = replace(NOISY, rounds=2, encryption=replace(NOISY.encryption, collusion_resistant=True))
COHORT = tuple(sorted(SITES))


def sites_of(federation: Federation) -> dict[str, Site]:
    return {site: open_site(federation.paths[site]) for site in COHORT}


def plan_of(federation: Federation, attempt: int = 1, cohort: Sequence[str] = COHORT) -> RoundPlan:
    """A plan of the first round."""
    document, manifest, run = signed_run(federation)
    return RoundPlan(
        run=run, round=1, attempt=attempt, cohort=tuple(cohort), roster_version=manifest.roster_version, epoch=1,
        keys=keys_of(federation, "north").fingerprint, minimum_cohort=3, deadline=time.time() + 60,
        base_model=get_ready(admit(open_site(federation.paths["north"]), document), node_of(federation, "north")).model,
    )  # fmt: skip


def updates_of(federation: Federation, plan: RoundPlan) -> dict[str, SignedUpdate]:
    """What every site of the cohort sends."""
    document, sites = signed_run(federation)[0], sites_of(federation)
    return {site: train_round(admit(sites[site], document).round(plan), []) for site in plan.cohort}


def headers(updates: dict[str, SignedUpdate]) -> list[Contribution]:
    return [Contribution(update.header, update.signature, b"") for update in updates.values()]


def sign(
    federation: Federation, site: str, plan: RoundPlan, contributions: Sequence[Contribution]
) -> tuple[bytes, bytes]:
    """What a site signs of its contributors, and the seeds that it gives."""
    return agree(admit(open_site(federation.paths[site]), signed_run(federation)[0]).round(plan), contributions)


def signed_by(
    federation: Federation, plan: RoundPlan, updates: dict[str, SignedUpdate]
) -> dict[str, tuple[bytes, bytes]]:
    return {site: sign(federation, site, plan, headers(updates)) for site in updates}


def signatures(agreed: dict[str, tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {site: signature for site, (signature, _) in agreed.items()}


def ask(
    federation: Federation, site: str, plan: RoundPlan, updates: dict[str, SignedUpdate],
    agreed: dict[str, bytes] | None = None,
) -> bytes:  # fmt: skip
    """Have a site reveal its seed, once all have signed that they contributed."""
    if agreed is None:
        agreed = signatures(signed_by(federation, plan, updates))
    contributions = headers(updates)
    return reveal(
        admit(open_site(federation.paths[site]), signed_run(federation)[0]).round(plan), contributions, agreed
    )


def without_the_last(
    federation: Federation,
) -> tuple[RoundPlan, dict[str, SignedUpdate], dict[str, bytes], dict[str, bytes]]:
    """A plan, the updates of all but the last of its cohort, and their seeds: of own masks, and of shared ones."""
    plan = plan_of(federation)
    everyone = updates_of(federation, plan)
    updates = {site: everyone[site] for site in COHORT[:3]}
    agreed = signed_by(federation, plan, updates)
    seeds = {site: ask(federation, site, plan, updates, signatures(agreed)) for site in updates}
    return plan, updates, seeds, {site: sealed for site, (_, sealed) in agreed.items()}


def summed(federation: Federation, plan: RoundPlan, updates: dict[str, SignedUpdate], seeds: dict[str, bytes],
           pairs: dict[str, bytes] | None = None) -> EncryptedSum:  # fmt: skip
    """The sum as the server makes it, with what it has of the seeds."""
    _, manifest, _ = signed_run(federation)
    total, roster = RunningSum(plan), open_site(federation.paths["north"]).roster
    for site, update in updates.items():
        total.add(verify_update(update, site, plan, manifest, roster))
    closed = total.close()
    parts = [
        replace(part, reveal=seeds.get(site, b""), pairs=(pairs or {}).get(site, b""))
        for site, part in zip(updates, closed.contributions, strict=True)
    ]
    return replace(closed, contributions=tuple(parts))


def open_at(federation: Federation, site: str, total: EncryptedSum) -> None:
    opened = open_site(federation.paths[site])
    open_sum(admit(opened, signed_run(federation)[0]), total)


def breaking(federation: Federation, site: str, kind: str) -> Answer:
    """What all sites do, but for one whose line breaks when it is to answer this kind of message."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, kind):
            return reply(Error(1, "the line broke"), message)
        return app(message, context)

    return answer
