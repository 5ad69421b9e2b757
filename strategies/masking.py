"""Rounds with masks, the server's half: contributors agree on each other, then each reveals the seed of its own mask.

    a site is gone                             what that costs
    before it has sent, or while it sends      nothing: the others give the seeds of the masks that they share with it
    after its update, before it agreed         another attempt with the others: the same updates, fresh masks
    after it agreed, before it revealed        the round: nobody reveals twice

Nothing is charged for any of them. The rules by which sites take part in this stand in `privacy.agreement`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Message

from privacy.errors import CloisterError, ProtocolError
from transport.contents import content_of
from transport.masking import pack_contributors, read_agreed, read_revealed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flwr.app import RecordDict
    from flwr.serverapp import Grid

    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum
    from strategies.membership import Membership

AGREE, REVEAL = "query.agree", "query.reveal"

T = TypeVar("T")


def next_attempt(plan: RoundPlan, sites: Sequence[str], seconds: float) -> RoundPlan:
    """Return the plan of another attempt, with just these sites."""
    return replace(plan, attempt=plan.attempt + 1, cohort=tuple(sites), deadline=time.time() + seconds)


def agree_on(
    grid: Grid, members: Membership, total: EncryptedSum, sites: Sequence[str]
) -> tuple[EncryptedSum, dict[str, bytes], dict[str, str]]:
    """Have all contributors sign who they are.

    Args:
        grid: to ask through.
        members: which nodes speak for which sites.
        total: the sum.
        sites: its contributors, in order.

    Returns:
        The sum with the seeds to take off it; what each site signed; who did not sign, and why.
    """
    content = pack_contributors(members.manifest, total.plan, total.contributions)
    agreed, problems = _ask(grid, members, AGREE, sites, content, read_agreed)
    parts = zip(sites, total.contributions, strict=True)
    contributions = tuple(replace(part, pairs=agreed.get(site, (b"", b""))[1]) for site, part in parts)
    signatures = {site: agreed[site][0] for site in sites if site in agreed}
    return replace(total, contributions=contributions), signatures, problems


def add_reveals(
    grid: Grid, members: Membership, total: EncryptedSum, signatures: Mapping[str, bytes]
) -> tuple[EncryptedSum, dict[str, str]]:
    """Ask all contributors for the seeds of their masks; return the sum with them, and who gave none, and why.

    Args:
        grid: to ask through.
        members: which nodes speak for which sites.
        total: the sum.
        signatures: of all its contributors, in order.
    """
    content = pack_contributors(members.manifest, total.plan, total.contributions, signatures)
    revealed, problems = _ask(grid, members, REVEAL, list(signatures), content, read_revealed)
    parts = zip(signatures, total.contributions, strict=True)
    contributions = tuple(replace(part, reveal=revealed.get(site, b"")) for site, part in parts)
    return replace(total, contributions=contributions), problems


def check_all_revealed(problems: Mapping[str, str], number: int) -> None:
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


def _ask(
    grid: Grid,
    members: Membership,
    kind: str,
    sites: Sequence[str],
    content: RecordDict,
    read: Callable[[RecordDict], T],
) -> tuple[dict[str, T], dict[str, str]]:
    """Ask sites one thing; return what they answered, and why others did not."""
    asked, names = [site for site in sites if site in members.nodes], members.names()
    seconds = members.attention.seconds
    messages = [Message(content, members.nodes[site], kind, ttl=seconds, group_id="masks") for site in asked]
    found: dict[str, T] = {}
    problems = dict.fromkeys(sites, "it did not answer in time, after it had sent its update")
    for node, reply in members.attention.ask(grid, messages, lambda: len(found) == len(sites)):
        site = names[node]
        if site in found:  # the same reply again, or something else after it
            continue
        try:
            found[site] = read(content_of(reply))
            del problems[site]
        except CloisterError as error:
            problems[site] = str(error)
    return found, problems
