"""Rounds with masks, the server's half: masks cancel over a whole cohort only, and open only once all revealed a seed.

If a site drops out before the sum is complete, the round is attempted again with those who are left, who send the same
update under fresh masks. If one drops out after others have revealed, the round is lost: nobody reveals twice.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Message

from privacy.errors import CloisterError, ProtocolError
from transport.contents import content_of
from transport.masking import pack_reveal, read_revealed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.serverapp import Grid

    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum
    from strategies.membership import Membership

REVEAL = "query.reveal"


def next_attempt(plan: RoundPlan, sites: Sequence[str], seconds: float) -> RoundPlan:
    """Return the plan of another attempt, with just these sites."""
    return replace(plan, attempt=plan.attempt + 1, cohort=tuple(sites), deadline=time.time() + seconds)


def add_reveals(
    grid: Grid, members: Membership, total: EncryptedSum, sites: Sequence[str]
) -> tuple[EncryptedSum, dict[str, str]]:
    """Ask all contributors for the seeds of their masks; return the sum with them, and who gave none, and why.

    Args:
        grid: to ask through.
        members: which nodes speak for which sites.
        total: a sum over a plan's whole cohort.
        sites: its contributors, in order.
    """
    seconds, names = members.attention.seconds, members.names()
    content = pack_reveal(members.manifest, total.plan, total.contributions)
    asked = [site for site in sites if site in members.nodes]
    messages = [Message(content, members.nodes[site], REVEAL, ttl=seconds, group_id="masks") for site in asked]
    sealed: dict[str, bytes] = {}
    problems = dict.fromkeys(sites, "it did not reveal the seed of its mask in time")
    for node, reply in members.attention.ask(grid, messages, lambda: len(sealed) == len(sites)):
        site = names[node]
        if site in sealed:  # the same reply again, or something else after it
            continue
        try:
            sealed[site] = read_revealed(content_of(reply))
            del problems[site]
        except CloisterError as error:
            problems[site] = str(error)
    parts = zip(sites, total.contributions, strict=True)
    return replace(
        total, contributions=tuple(replace(part, reveal=sealed.get(site, b"")) for site, part in parts)
    ), problems


def check_all_revealed(problems: dict[str, str], number: int) -> None:
    """Check that a masked sum can be opened.

    Raises:
        ProtocolError: if a seed is missing; whoever revealed for it reveals for no other attempt.
    """
    if problems:
        who = ", ".join(problems)
        msg = (
            f"round {number}: without the mask of {who} the sum cannot be opened; the next round starts from its model"
        )
        raise ProtocolError(msg)
