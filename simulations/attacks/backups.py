"""Attacks with backups: a site's folder is restored, and the server asks again for what the site did before.

Each function makes one try, and returns whether it failed: no sum opens but that of its contributors, no second mask of
a round is revealed, and no update is made for a round that is over.
"""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING

from privacy.codec.ciphertext import COEFF_MODULUS
from privacy.errors import RunError
from simulations.attacks.malicious_server import SITES
from simulations.attacks.transcript import added, times
from transport.messages import TRAIN, Order

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulations.attacks.malicious_server import MaliciousServer
    from simulations.attacks.transcript import Run, Transcript

_MOMENTS = 0.1, 1.0, 10.0  # seconds allowed for an update; a busy machine needs more


def _made_twice(server: MaliciousServer, run: Run) -> tuple[Transcript, str, Transcript]:
    """Collect a round, restore a site to its state before, and have it make another update for the same plan."""
    victim = server.pick()
    copy = server.copy(victim)
    transcript = server.collect(run)
    server.restore(victim, copy)
    return transcript, victim, server.train(run, transcript.plan, [victim])


def update_again(server: MaliciousServer) -> bool:
    """Replace a site's update with its second one for the same plan, or add a multiple of their difference.

    If both had the same pads, their difference would have a valid code and tag, and a server that expands the seeds
    could forge sums without a key.
    """
    transcript, victim, second = _made_twice(server, server.runs[str(server.rng.choice(["few", "many"]))])
    total, contributions = transcript.total(*transcript.updates), transcript.contributions(*transcript.updates)
    others = transcript.contributions(*(site for site in transcript.updates if site != victim))
    difference = added(second.term(victim), times(transcript.term(victim), COEFF_MODULUS - 1))
    factor = int(server.rng.choice([2, COEFF_MODULUS - 1, int(server.rng.integers(COEFF_MODULUS))]))
    return server.deliver(transcript.run, [
        lambda: transcript.sum(added(total, difference), contributions),
        lambda: transcript.sum(added(total, times(difference, factor)), contributions),
        lambda: transcript.sum(total, (*others, *second.contributions(victim))),
        lambda: transcript.sum(added(total, second.term(victim)), (*contributions, *second.contributions(victim))),
    ][server.rng.integers(4)]())  # fmt: skip


def mask_again(server: MaliciousServer) -> bool:
    """Have a site reveal the masks of two updates for one plan, or one mask under the other update's header."""
    run = server.runs["masked"]
    transcript, victim, second = _made_twice(server, run)
    others = [site for site in SITES if site != victim]
    mixed = replace(transcript, updates=transcript.updates | second.updates)
    before = server.state()
    refused = server.refused(server.agree(mixed, *SITES, sites=others), before)
    signatures, _ = server.agreed(mixed, *SITES, sites=[victim])
    refused &= server.refused(server.reveal(mixed, signatures | transcript.signatures, [victim]), before)
    return refused and server.deliver(run, mixed.sum(mixed.total(*SITES), mixed.contributions(*SITES)))


def plan_that_is_over(server: MaliciousServer) -> bool:
    """Ask a site for a second update after the plan's deadline."""
    run, victim = server.pick_run(), server.pick()
    copy = server.copy(victim)
    for seconds in _MOMENTS:
        plan = replace(server.plan(run), deadline=time.time() + seconds)
        ask = {victim: Order(run.document, plan.to_bytes())}
        if server.ask(TRAIN, ask)[victim].has_content():
            server.restore(victim, copy)
            Event().wait(plan.deadline - time.time())
            before = server.state()
            return server.refused(server.ask(TRAIN, ask), before)
    msg = f"{victim} made no update in {_MOMENTS[-1]:g} s; this benchmark is broken"
    raise RunError(msg)


BACKUPS: dict[str, Callable[[MaliciousServer], bool]] = {
    "two updates, one from a backup": update_again,
    "two masks, one from a backup": mask_again,
    "a backup, the round being over": plan_that_is_over,
}
"""The attacks, by their name in the table."""
