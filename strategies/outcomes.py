"""Step 4 of a round at the server: hear which model each site reached with the sum, or why it did not open it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from privacy.errors import CloisterError
from strategies.membership import UNOPENED
from transport.mask_messages import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flwr.app import Message
    from flwr.serverapp import Grid

    from strategies.membership import Membership, Standing
    from strategies.open_round import OpenRound
    from strategies.voting import Voting


class Outcomes(NamedTuple):
    """What sites say about a sum, by site."""

    models: dict[str, Standing]
    reports: dict[str, Mapping[str, float]]  # the metrics of the sites that reached a model
    refusals: dict[str, Refusal]  # in a masked round


def hear_outcomes(
    grid: Grid, members: Membership, voting: Voting, current: OpenRound, replies: Iterable[Message], *, masked: bool
) -> Outcomes:
    """Return what sites reply to a sum of the open round; note votes, and problems.

    Args:
        grid: the grid through which the sum was delivered.
        members: of the run.
        voting: counts the votes.
        current: the open round.
        replies: what arrives, in any order.
        masked: whether refusals are kept, so that a liar can be found.
    """
    names, heard = members.names(), Outcomes({}, {}, {})
    models, reports, refusals = heard
    plan = current.plan.to_bytes() if current.plan else b""
    for node, reply in members.attention.hear(grid, replies, lambda: bool(models or refusals)):
        if (site := names[node]) in models.keys() | refusals.keys():
            continue
        try:
            outcome = members.read_outcome(site, plan, reply)
            if isinstance(outcome, Refusal):
                current.problems[site] = UNOPENED
                if masked:
                    refusals[site] = outcome
                continue
            models[site] = outcome.opened.model, outcome.opened.update_bound
            members.attention.release(node)
            reports[site] = current.hear(site, outcome.metrics)
            voting.hear(site, outcome.vote)
        except CloisterError as error:
            current.problems[site] = str(error)
    return heard
