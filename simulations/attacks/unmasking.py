"""Attacks by which a server tries to have more than one sum of a round unmasked: other seeds, attempts and sets.

Each function makes one try against all sites, and returns whether every site refused.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from privacy.crypto.masking import REVEAL_BYTES
from simulations.attacks.malicious_server import SECONDS, SITES
from strategies.masking import next_attempt
from transport.messages import REVEAL, TRAIN, Order
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulations.attacks.malicious_server import MaliciousServer


def other_masks(server: MaliciousServer) -> bool:
    """Open a masked sum with a site's seed missing, exchanged, made up, or from another round."""
    run = server.runs["masked"]
    transcript = server.collect(run)
    site, other = (str(name) for name in server.rng.permutation(list(transcript.updates))[:2])
    earlier = run.honest.reveals
    changes = [
        {site: b""}, {site: transcript.reveals[other], other: transcript.reveals[site]}, {site: earlier[site]},
        {site: server.rng.bytes(REVEAL_BYTES)},
    ]  # fmt: skip
    changed = replace(transcript, reveals=transcript.reveals | changes[server.rng.integers(4)])
    return server.deliver(
        run, changed.sum(changed.total(*transcript.updates), changed.contributions(*transcript.updates))
    )


def two_attempts(server: MaliciousServer) -> bool:
    """Claim that a site dropped out, to get masks of two attempts: a site that revealed in one joins no other."""
    run, rng = server.runs["masked"], server.rng
    *rest, _ = everyone = server.shuffled()
    first = server.train(run, server.plan(run))
    signers = [everyone, rest[: int(rng.integers(1, len(rest)))]][rng.integers(2)]
    signatures, _ = server.agreed(first, *everyone)
    if not all(reply.has_content() for reply in server.reveal(first, signatures, signers).values()):
        return False
    before, again = server.state(), Order(run.document, next_attempt(first.plan, rest, SECONDS).to_bytes())
    return server.refused(server.ask(TRAIN, {site: again for site in rest if site in signers}), before)


def two_sets(server: MaliciousServer) -> bool:
    """Have sites sign one set of contributors, then show them another, or an incomplete set of signatures."""
    run, rng = server.runs["masked"], server.rng
    *rest, gone = everyone = server.shuffled()
    transcript = server.train(run, server.plan(run))
    first, second = [(everyone, rest), (rest, everyone)][rng.integers(2)]
    signatures, _ = server.agreed(transcript, *first)
    before = server.state()
    refused = server.refused(
        {site: signature for site, signature in server.agree(transcript, *second).items() if site in first}, before
    )
    victim = rest[0]
    lies = [
        {site: signature for site, signature in signatures.items() if site != victim},
        signatures | {victim: signatures[first[-1]]},
        signatures | {victim: rng.bytes(64)},
        {site: signatures.get(site, signatures[victim]) for site in second},
    ]
    claimed = lies[rng.integers(len(lies))]
    headers = transcript.contributions(*([*claimed, victim] if victim not in claimed else claimed))
    return refused and server.refused(
        server.show(transcript, headers, claimed, [site for site in rest if site != gone]), before
    )


def one_update_twice(server: MaliciousServer) -> bool:
    """Make a second sum with updates of the first: under the same plan with fewer sites, or in another attempt."""
    run, rng = server.runs["masked"], server.rng
    *rest, _ = server.shuffled()
    first = server.collect(run)
    before = server.state()
    if rng.integers(2):
        refused = server.refused(server.agree(first, *rest), before)
        return refused and server.deliver(run, first.sum(first.total(*rest), first.contributions(*rest)))
    second = next_attempt(first.plan, rest, SECONDS)
    refused = server.refused(server.ask(TRAIN, dict.fromkeys(rest, Order(run.document, second.to_bytes()))), before)
    mixed = replace(first, plan=second)
    refused &= server.deliver(run, mixed.sum(mixed.total(*rest), mixed.contributions(*rest)))
    server.open(first)
    return refused


def framed(server: MaliciousServer) -> bool:
    """Make an honest site look like a liar, with seeds that it did not reveal for this sum; repeat a round without it.

    A round may be summed again without members that are proven liars. If a server could prove that of any member, it
    would get two sums of the others' updates, and so that member's update.
    """
    run, rng = server.runs["masked"], server.rng
    *rest, absent = server.shuffled()
    claimed = [rest, [*rest, absent]][rng.integers(2)]
    transcript = server.train(run, server.plan(run))
    signatures, pairs = server.agreed(transcript, *claimed)
    reveals = {
        site: REVEAL.read_reply(content_of(reply))
        for site, reply in server.reveal(transcript, signatures, claimed).items()
    }
    suspect, accomplice = rest[0], rest[1]
    seeds, lie = [(reveals, "reveals"), (pairs, "pairs")][rng.integers(2)]
    false = [b"", seeds[accomplice], getattr(run.honest, lie)[suspect], rng.bytes(REVEAL_BYTES)][rng.integers(4)]
    contributors = [claimed, [suspect, accomplice, absent]][
        rng.integers(2)
    ]  # the others reveal seeds for an absent site, or for none
    seeds[suspect], true = false, seeds[suspect]
    mixed = replace(transcript, reveals=reveals, pairs=pairs)
    total = mixed.sum(mixed.total(*contributors), mixed.contributions(*contributors))
    if (false != true or contributors != claimed) and not server.deliver(run, total):
        return False
    again = server.collect(run)
    plan = next_attempt(again.plan, [site for site in SITES if site != suspect], SECONDS)
    content, before = Order(run.document, plan.to_bytes()), server.state()
    return server.refused(server.ask(TRAIN, dict.fromkeys(plan.cohort, content)), before)


def without_its_own(server: MaliciousServer) -> bool:
    """Have a site agree on a set without its own update, or with its update of another round, and reveal for it."""
    run, rng = server.runs["masked"], server.rng
    *rest, victim = server.shuffled()
    transcript = server.train(run, server.plan(run))
    if rng.integers(2):
        signatures, _ = server.agreed(transcript, *rest)
        before = server.state()
        refused = server.refused(server.agree(transcript, *rest, sites=[victim]), before)
        return refused and server.refused(server.reveal(transcript, signatures, [victim]), before)
    mixed = replace(transcript, updates=transcript.updates | {victim: run.honest.updates[victim]})
    return server.refused(server.agree(mixed, *rest, victim), server.state())


def two_cohorts(server: MaliciousServer) -> bool:
    """Plan one round for two cohorts: below the minimum, overlapping, or to be added into one sum."""
    run, rng = server.runs["many"], server.rng
    sites, absent = server.shuffled(), [site for site in run.manifest.settings.cohort.sizes if site not in SITES]
    if rng.integers(3) == 0:
        plans = [
            replace(server.plan(run), cohort=part, minimum_cohort=2) for part in (tuple(sites[:2]), tuple(sites[2:]))
        ]
        before = server.state()
        parts = {plan: Order(run.document, plan.to_bytes()) for plan in plans}
        requests = {site: content for plan, content in parts.items() for site in plan.cohort}
        return server.refused(server.ask(TRAIN, requests), before)
    *three, last = sites
    first = server.train(run, server.plan(run, tuple(three)))
    second = server.train(run, replace(first.plan, cohort=(last, *absent)))
    if rng.integers(2):
        other = replace(first.plan, cohort=(three[0], last, *absent), deadline=time.time() + SECONDS)
        before = server.state()
        content = Order(run.document, other.to_bytes())
        return server.refused(server.ask(TRAIN, dict.fromkeys((three[0], last), content)), before)
    both = replace(first, updates=first.updates | second.updates)
    return server.deliver(run, [
        both.sum(both.total(*sites), both.contributions(*sites)),
        both.sum(both.total(*sites), both.contributions(*three)),
        second.sum(second.total(last), second.contributions(last)),
    ][rng.integers(3)])  # fmt: skip


UNMASKING: dict[str, Callable[[MaliciousServer], bool]] = {
    "a mask withheld or exchanged": other_masks,
    "masks of two attempts": two_attempts,
    "two sets of contributors": two_sets,
    "two sums with one update": one_update_twice,
    "a set without the site's own": without_its_own,
    "an honest site made a liar": framed,
    "two cohorts of one round": two_cohorts,
}
"""The attacks, by their name in the table."""
