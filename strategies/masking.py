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
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flwr.app import Message

from privacy.agreement import without_disputes
from privacy.errors import CloisterError, ProtocolError
from privacy.masking import disputes
from transport.contents import content_of
from transport.masking import pack_contributors, pack_to_prove, read_agreed, read_proof, read_revealed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flwr.app import RecordDict
    from flwr.serverapp import Grid

    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum, RunningSum
    from strategies.membership import Membership
    from strategies.rounds import OpenRound
    from strategies.selection import Selection

_DISPUTE = "it and another site committed to different masks towards each other"
AGREE, REVEAL, PROVE = "query.agree", "query.reveal", "query.prove"

T = TypeVar("T")


class Agreed(NamedTuple):
    """A sum with the seeds to take off it, and what each of its contributors signed, in order."""

    total: EncryptedSum
    signatures: dict[str, bytes]


class Masking:
    """A run's masked rounds, as the server sees them."""

    def __init__(self, members: Membership, selection: Selection, colluding_sites: int, *, proofs: bool) -> None:
        self._members, self._selection, self._colluding, self._proofs = members, selection, colluding_sites, proofs

    def unmask(
        self, grid: Grid, current: OpenRound, total: RunningSum, attempt: Callable[[RoundPlan], RunningSum]
    ) -> EncryptedSum:
        """Have the contributors to a masked sum agree on each other, in attempts, and reveal the seeds of their masks.

        Args:
            grid: to ask through.
            current: the round, in which problems are noted.
            total: the sum of what has arrived.
            attempt: collects the updates again, for another plan.

        Raises:
            ProtocolError: if fewer than the minimum are left, or one keeps its mask after all agreed.
        """
        while True:
            current.contributors = total.sites
            result, problems = self._agreed(grid, total)
            current.problems |= problems
            if not problems:
                break
            left = [site for site in total.sites if site not in problems]
            if len(left) < total.plan.minimum_cohort:
                msg = f"round {current.number}: too few sites are left: {current.listed}"
                raise ProtocolError(msg)
            total = attempt(next_attempt(total.plan, left, self._members.attention.seconds))
        summed = result.total.digest if self._proofs else ""
        result, withheld = add_reveals(grid, self._members, result, summed)
        self._note(withheld, current, "mask")
        if self._proofs:
            result, withheld = add_proofs(grid, self._members, result)
            self._note(withheld, current, "proof")
        return result.total

    def _note(self, withheld: dict[str, str], current: OpenRound, what: str) -> None:
        current.problems |= withheld
        self._selection.withheld(withheld, current.number)
        check_all_shown(withheld, current.number, what)

    def _agreed(self, grid: Grid, total: RunningSum) -> tuple[Agreed, dict[str, str]]:
        """Have the contributors to a sum agree on each other; return that, and who did not, or must not, and why."""
        disputed = disputes(total.commitments, total.plan)
        self._selection.disputed(disputed)
        closed = Agreed(total.close(), {})
        if out := without_disputes(disputed, self._colluding):
            return closed, dict.fromkeys(out, _DISPUTE)
        return agree_on(grid, self._members, closed.total, total.sites)


def next_attempt(plan: RoundPlan, sites: Sequence[str], seconds: float) -> RoundPlan:
    """Return the plan of another attempt, with just these sites."""
    return replace(plan, attempt=plan.attempt + 1, cohort=tuple(sites), deadline=time.time() + seconds)


def agree_on(
    grid: Grid, members: Membership, total: EncryptedSum, sites: Sequence[str]
) -> tuple[Agreed, dict[str, str]]:
    """Have all contributors, in their order, sign who they are; return that, and who did not sign, and why."""
    content = pack_contributors(members.manifest, total.plan, total.contributions)
    agreed, problems = _ask(grid, members, AGREE, sites, content, read_agreed)
    parts = zip(sites, total.contributions, strict=True)
    contributions = tuple(replace(part, pairs=agreed.get(site, (b"", b""))[1]) for site, part in parts)
    signatures = {site: agreed[site][0] for site in sites if site in agreed}
    return Agreed(replace(total, contributions=contributions), signatures), problems


def add_reveals(grid: Grid, members: Membership, agreed: Agreed, summed: str = "") -> tuple[Agreed, dict[str, str]]:
    """Ask all contributors for the seeds of their masks; return the sum with them, and who gave none, and why."""
    total, sites = agreed.total, list(agreed.signatures)
    content = pack_contributors(members.manifest, total.plan, total.contributions, agreed.signatures, summed)
    revealed, problems = _ask(grid, members, REVEAL, sites, content, read_revealed)
    parts = zip(sites, total.contributions, strict=True)
    contributions = tuple(replace(part, reveal=revealed.get(site, b"")) for site, part in parts)
    return agreed._replace(total=replace(total, contributions=contributions)), problems


def add_proofs(grid: Grid, members: Membership, agreed: Agreed) -> tuple[Agreed, dict[str, str]]:
    """Ask all contributors to prove how long their updates are; return the sum with that, and who did not, and why."""
    total, sites = agreed.total, list(agreed.signatures)
    content = pack_to_prove(members.manifest, total, agreed.signatures)
    proofs, problems = _ask(grid, members, PROVE, sites, content, read_proof)
    shown = tuple(proofs.get(site, b"") for site in sites)
    return agreed._replace(total=replace(total, proofs=shown)), problems


def check_all_shown(problems: Mapping[str, str], number: int, what: str) -> None:
    """Check that a masked sum can be opened.

    Raises:
        ProtocolError: if a seed, or a proof, is missing; whoever revealed for it reveals for no other attempt.
    """
    if problems:
        who = ", ".join(problems)
        msg = (
            f"round {number}: without the {what} of {who} the sum cannot be opened; "
            "the next round starts from its model"
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
