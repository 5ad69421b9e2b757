"""Step 2 of a round at the server: verify each update as it arrives, and add it; note who sent none, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import MessageType

from privacy.codec.envelope import verify_update
from privacy.crypto.summation import RunningSum
from privacy.errors import CloisterError
from privacy.failpoints import failpoint
from strategies.event_log import NO_UPDATE
from transport.flower import FAILED, REFUSED
from transport.messages import TRAIN
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from flwr.app import Message
    from flwr.serverapp import Grid

    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from strategies.bodies import Bodies
    from strategies.membership import Membership
    from strategies.open_round import OpenRound

_LATE = "its update came after the others had been asked to sign that they are the contributors"


class Adder:
    """Adds up the updates of a run's rounds."""

    def __init__(self, members: Membership, manifest: Manifest, bodies: Bodies) -> None:
        self._members, self._manifest, self._bodies = members, manifest, bodies
        self._masked = manifest.settings.encryption.collusion_resistant

    def add_all(
        self, grid: Grid, current: OpenRound, plan: RoundPlan, replies: Iterable[Message], only: Collection[str] = ()
    ) -> RunningSum:
        """Return the sum of the updates that arrive.

        Args:
            grid: the grid through which they were asked for.
            current: the open round; problems, bytes and reports are noted in it.
            plan: the plan that they must be for.
            replies: what arrives, in any order.
            only: if it is not empty, the sites of which updates are added, and no others.
        """
        self._bodies.clear()
        members, attention = self._members, self._members.attention
        total, silent, problems = RunningSum(plan), set(plan.cohort), current.problems
        names, added = members.names(), set[str]()
        for node, reply in attention.hear(grid, replies, lambda: len(added) >= plan.minimum_cohort):
            site = names[node]
            silent.discard(site)
            if site in added:  # a duplicate, or another reply after the first
                continue
            if only and site not in only:
                problems[site] = _LATE
                continue
            try:
                self._add(total, current, site, reply)
                added.add(site)
                failpoint("update-added")
            except CloisterError as error:
                problems[site] = str(error)
                if reply.has_error() and reply.error.code in {FAILED, REFUSED}:  # the site's, not the engine's
                    current.refused[site] = str(error)
        members.heads.save()
        for site in silent:
            if site not in members.nodes and site in problems:  # it was not there to be asked
                continue
            problems[site] = NO_UPDATE
            if members.nodes.get(site) in attention.unanswered(MessageType.TRAIN):
                problems[site] = (
                    "no update yet; it failed an earlier round, so rounds do not wait for it until it sends an update"
                )
            members.doubt(site)
        return total

    def _add(self, total: RunningSum, current: OpenRound, site: str, reply: Message) -> None:
        trained = TRAIN.read_reply(content_of(reply))
        signed = trained.update
        update = verify_update(signed, site, total.plan, self._manifest, self._members.roster)
        self._members.heads.note(site, trained.head)
        self._members.check_shared(update.header)
        current.take(site, signed.header)
        total.add(update)
        if self._masked:  # without masks, no site is ever shown another's update
            self._bodies.keep(site, signed)
        # Training started from the run's model, so the site has that model now.
        self._members.models[site] = total.plan.base_model
        current.bytes_up += sum(map(len, signed.chunks)) + len(signed.header) + len(signed.signature)
        current.problems.pop(site, None)
        for spent in current.hear(site, trained.report).values():  # only ε, if anything
            current.epsilon[site] = spent
