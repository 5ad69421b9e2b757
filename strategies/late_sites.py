"""Deliver the sums that sites have missed, once a run's rounds are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from privacy.errors import CloisterError
from transport.messages import EVALUATE, Delivery

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from strategies.ceremony import Ceremony
    from strategies.membership import Membership
    from strategies.voting import Voting


def go_back(grid: Grid, members: Membership, voting: Voting, seconds: float, *, resumed: bool) -> None:
    """Have sites that still have a model that was voted down go back to the one before.

    Args:
        grid: reaches the sites.
        members: what is known of them.
        voting: has the votes.
        seconds: how long to wait for sites.
        resumed: whether an earlier process began the run, and knew which models sites have.
    """
    if resumed and members.wanted - members.models.keys():
        members.gather(grid, len(members.wanted), seconds)
    if away := [site for site, model in members.models.items() if members.event_log.undone(model)]:
        members.gather(grid, len(members.models), seconds)
        voting.undo(grid, away)


def catch_up(grid: Grid, members: Membership, ceremony: Ceremony, seconds: float) -> list[str]:
    """Bring sites that lack a sum to the run's model, as far as they answer; return those that do not have it then.

    Args:
        grid: reaches the sites.
        members: what is known of them.
        ceremony: has their letters: without the keys of a sum, no site can open it.
        seconds: how long to wait for those that have taken part, and are not online or do not answer.
    """
    if any(site in members.models for site in members.behind):
        members.gather(grid, len(members.models), seconds)
    here = [site for site in members.behind if site in members.nodes]
    ceremony.relay(grid, here)
    for site in here:
        for total in members.event_log.missing(members.models[site]):
            content, node = EVALUATE.pack(Delivery(members.manifest, [total])), members.nodes[site]
            message = Message(content, node, MessageType.EVALUATE, ttl=seconds, group_id="catch-up")
            for _, reply in members.attention.ask(grid, [message]):
                try:
                    members.models[site], _ = members.read_standing(site, total.plan, reply)
                except CloisterError as error:
                    members.problems[site] = str(error)
    return members.behind
