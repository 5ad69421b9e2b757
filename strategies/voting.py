"""The server's half of votes on a round's model: it counts them, and relays them to the sites, which check the result.

It cannot make or change a vote. See `privacy.run.votes` for the rule, `client.round.voting` for the site's half.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from flwr.app import Message

from privacy.errors import AuthenticityError, CloisterError
from privacy.run.votes import Question, check_vote, estimate, is_rejected
from strategies.event_log import Undone
from transport.messages import UNDO, Undo
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from flwr.serverapp import Grid

    from privacy.run.plan import RoundPlan
    from privacy.run.settings import RunSettings
    from privacy.run.votes import Vote
    from strategies.membership import Membership


RESPONSIBLE = "its round was undone; this site or another contributor is responsible"


class Decision(Enum):
    """The outcome of the votes on a round's model."""

    KEPT = auto()
    UNDONE = auto()
    OPEN = auto()  # too few votes


class Voting:
    """The votes of a run, round by round."""

    def __init__(self, members: Membership, settings: RunSettings) -> None:
        self._members, self._settings = members, settings
        self._votes: dict[str, Vote] = {}
        self._update_bound = 0.0  # of updates from the previous model

    def begin(self) -> None:
        """Forget the previous round's votes; note the range that this round began with."""
        self._votes, self._update_bound = {}, self._members.update_bound

    def hear(self, site: str, vote: Vote | None) -> None:
        """Take the vote in a site's reply, if there is one."""
        if vote is not None:
            self._votes[site] = vote

    def decide(
        self, plan: RoundPlan | None, model: str, contributors: Collection[str]
    ) -> tuple[Decision, dict[str, Any]]:
        """Count the votes on the model after a plan's sum; return the decision, and figures for the log.

        If the round is undone, the run goes on from the previous model. Only contributors' votes count, because only
        they can have spoiled the round. Otherwise a member could have rounds undone without ever being suspected.
        """
        settings = self._settings
        if settings.vote is None or plan is None or model == plan.base_model:
            return Decision.KEPT, {}
        question = Question(plan.run, plan.round, plan.base_model, model)
        votes = {site: vote for site, vote in self._votes.items()
                 if site in contributors and self._holds(question, site, vote)}  # fmt: skip
        rejected = sum(vote.reject for vote in votes.values())
        figures = {
            "keep": len(votes) - rejected,
            "reject": rejected,
            "worse": round(estimate(votes.values(), settings.vote.epsilon), 2),
        }
        if len(votes) < settings.cohort.minimum:
            return Decision.OPEN, {"votes": figures}
        if not is_rejected(votes.values(), settings.cohort.minimum):
            return Decision.KEPT, {"votes": figures}
        self._members.event_log.undo(Undone(question, votes, self._update_bound))
        self._members.model, self._members.update_bound = plan.base_model, self._update_bound
        return Decision.UNDONE, {"votes": figures, "undone": True}

    def undo(self, grid: Grid, sites: Iterable[str]) -> None:
        """Have sites whose model was undone go back; ask the others again which model they have."""
        members, names, messages = self._members, self._members.names(), []
        targets = {site: undone for site in sites if (undone := members.event_log.undone(members.models.get(site, "")))}
        for site, undone in targets.items():
            if site in members.nodes:
                of = undone.question
                asking = UNDO.pack(Undo(members.manifest, of.round, of.before, of.after, undone.votes))
                node, seconds = members.nodes[site], members.attention.seconds
                messages.append(Message(asking, node, UNDO.name, ttl=seconds, group_id=str(of.round)))
        for node, reply in members.attention.ask(grid, messages):
            undone = targets[site := names[node]]
            try:
                if UNDO.read_reply(content_of(reply)) == undone.question.before:
                    members.models[site], members.bounds[site] = undone.question.before, undone.update_bound
            except CloisterError as error:
                members.problems[site] = str(error)
        for site in targets:
            if members.event_log.undone(members.models[site]):
                members.doubt(site)

    def _holds(self, question: Question, site: str, vote: Vote) -> bool:
        try:
            check_vote(question, site, vote, self._members.roster)
        except AuthenticityError:
            return False
        return True
