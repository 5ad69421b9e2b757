"""The server's half of encrypted federated averaging: a Flower `Strategy` that adds updates that it cannot read.

The arrays that Flower passes from round to round stay empty: the server has no model. A round:

1. Plan:  ask which sites are ready, and bind cohort, model, deadline and minimum into a plan (`configure_train`).
2. Add:   verify each update as it arrives, add it modulo q, close at the deadline (`aggregate_train`).
3. Open:  deliver the sum; every site decrypts and applies it (`configure_evaluate`).
4. Agree: all sites must arrive at the same model (`aggregate_evaluate`).
5. Vote:  in a run with votes, undo the round if half or more of them reject its model (`strategies.voting`).

Below the minimum cohort, nothing is released and the model does not change.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from privacy.codec.ciphertext import CIPHERTEXT_BYTES
from privacy.errors import ProtocolError, RunError
from privacy.run.manifest import open_run
from privacy.run.plan import read_plan
from strategies.adding import Adder
from strategies.attention import Attention
from strategies.bodies import Bodies
from strategies.ceremony import Ceremony
from strategies.interruption import Interruption
from strategies.judging import LiarFinder
from strategies.key_turns import KeyTurn
from strategies.late_sites import catch_up, go_back
from strategies.ledger_heads import RunHeads
from strategies.masking import Masking, next_attempt
from strategies.membership import Membership
from strategies.metrics import averaged
from strategies.open_round import OpenRound, begin_round, first_attempt
from strategies.outcomes import hear_outcomes
from strategies.run_memory import RunMemory
from strategies.selection import Selection
from strategies.voting import RESPONSIBLE, Decision, Voting
from transport.messages import EVALUATE, TRAIN, Delivery, Order
from transport.receipts import make_receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from flwr.serverapp import Grid

    from privacy.crypto.summation import EncryptedSum, RunningSum
    from privacy.run.manifest import SignedRun
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Roster
    from strategies.event_log import EventLog
    from strategies.outcomes import Outcomes
    from strategies.shared import Shared
    from transport.channel import TlsFiles
    from transport.mask_messages import Refusal
    from transport.messages import MessageKind

Q = TypeVar("Q")
_RETURN = 20.0  # seconds: how long a resumed run waits for all sites, whose agents have lost the server
_LAST = 0.1  # of a deadline: how long the end of a run waits for sites that are behind
_MOST_FAILURES = 3  # rounds in a row without a release, after which the run ends


class EncryptedStrategy(Strategy):
    """Federated averaging over ciphertexts, weighted by the sizes that the manifest declares."""

    def __init__(
        self, run: SignedRun, roster: Roster, event_log: EventLog, shared: Shared, tls: TlsFiles, *, new_epoch: bool,
        newer: Callable[[], Roster | None] = lambda: None, interruption: Interruption | None = None,
        unattended: bool = False,
    ) -> None:  # fmt: skip
        """Take a function that returns the roster under which the next rounds go on, if there is a newer one."""
        self._interruption = interruption or Interruption()
        self._turn = KeyTurn(shared.turns, self._interruption.check)
        self._document, self._manifest, self._run = run.document, run.manifest, run.digest
        self._newer_roster, self._event_log, self._tls = newer, event_log, tls
        settings = self._manifest.settings
        cohort, colluding, masked = settings.cohort, settings.colluding_sites, settings.encryption.collusion_resistant
        self._attention = Attention(cohort.round_deadline_seconds, shared.sites.turn(self._interruption.check))
        self._members = members = Membership(
            run.document, run.digest, roster, event_log, RunHeads(shared.heads, held_out=settings.kind.held_out),
            self._attention, tuple(cohort.sizes), liars=colluding if masked else 0, unattended=unattended,
        )  # fmt: skip
        self._ceremony = Ceremony(members, shared.letters, event_log, self._turn, new_epoch=new_epoch, masked=masked)
        self._selection = Selection(members, cohort.minimum, colluding)
        members.use_roster(roster)  # it may lack sites that have left since the run was signed
        self._voting = Voting(members, settings)
        proofs, self._bodies = settings.encryption.update_norm is not None, Bodies(event_log.kept.scratch)
        self._masks = Masking(members, self._selection, colluding, proofs=proofs) if masked else None
        self._liar_finder, self._adder = LiarFinder(members, colluding), Adder(members, run.manifest, self._bodies)
        self._memory = RunMemory(run.digest, members, event_log, self._selection)
        self._before = self._round = OpenRound(0)
        self._sum: EncryptedSum | None = None  # released, and not sent to the sites yet
        self._seconds, self._failures = cohort.round_deadline_seconds, 0
        self._there = list[str]()  # sites present when the round was planned
        self.released, self.ended = self._memory.released, self._memory.ended

    @property
    def resumed(self) -> bool:
        """Whether an earlier process began this run: this one goes on with it."""
        return self._memory.resumed

    @property
    def model(self) -> str | None:
        """Digest of the model that the sites have."""
        return self._members.model

    @property
    def problems(self) -> str:
        """The last round's problems, phrased for a message."""
        return self._round.listed

    def where(self) -> tuple[int, dict[int, str]]:
        """Return the number of the open round, and the site that each node speaks for."""
        return self._round.number, self._members.names()

    def finish(self, grid: Grid) -> list[str]:
        """Bring sites that missed a sum up to date, after the last round; return those that still lack its model."""
        members, seconds, late = self._members, _LAST * self._seconds, self._event_log.unconfirmed
        go_back(grid, members, self._voting, seconds, resumed=self.resumed)
        if late:
            members.deliver_again(grid, members.gather(grid, len(members.wanted), seconds), self._seconds)
            if self._event_log.unconfirmed:
                return sorted(members.wanted)
            self.released += 1
            if self._memory.open:  # the run was stopped, and the process that had added up this sum was killed
                self._memory.reopen(self._round, (), seconds, masked=False)
                self._record(model=members.model, metrics={}, sharing=[])
            self._keep(is_open=False)
        return catch_up(grid, members, self._ceremony, seconds) if self.released else []

    def close(self) -> None:
        """Forget the open round."""
        self._bodies.clear()
        self._attention.let_go()
        self._turn.end()

    def summary(self) -> None:
        """Do nothing: Flower asks strategies to log their settings here; ours are in the manifest."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                        grid: Grid) -> Iterable[Message]:  # fmt: skip
        """Plan the round, and ask the cohort to train.

        Raises:
            RunError: if too many rounds in a row released nothing, or another round would release nothing either.
            AuthenticityError: if a newer roster does not list who signed the run.
        """
        del arrays, config
        self._round.check_repeated(self._before, started=self._event_log.started)
        for site in self._round.refused:
            self._members.doubt(site)  # asking again whether it is ready costs nothing
        if self._failures >= _MOST_FAILURES:
            msg = f"{self._failures} rounds in a row released nothing: {self._round.listed}"
            raise RunError(msg)
        self._before, self._round = self._round, (current := OpenRound(self.ended + 1))
        self._grid, cohort, seconds = grid, self._manifest.settings.cohort, self._seconds
        self._prepare()
        self._members.check_enough(0 if self._memory.open else cohort.minimum)  # an open round may still end
        if self.resumed and server_round == 1 and not self._failures:
            self._members.gather(grid, len(self._members.wanted), min(_RETURN, seconds))
        present = self._members.gather(grid, cohort.minimum, seconds)
        if self._memory.open:
            present = begin_round(self._members, grid, present, cohort.minimum)
            self._there, self._sum = present, self._memory.reopen(current, present, seconds, masked=bool(self._masks))
            if current.plan is None or self._sum:
                return []
            self._keep(is_open=True, asked=self._memory.asked)
            return self._ask_to_train(grid, current.plan, [site for site in current.plan.cohort if site in present])
        self._voting.undo(grid, present)
        present = [site for site in present if site in self._members.nodes]
        present = self._members.deliver_again(grid, present, seconds)
        current.problems |= self._members.absent | self._members.problems
        if len(present) < cohort.minimum or self._members.model is None:
            return []
        self._there, present = present, self._selection.choose(present, current.number, current.problems)
        epoch, keys, present = self._ceremony.agree(grid, present, cohort.minimum)
        current.started = time.monotonic()  # do not count the wait for sites
        if len(present) < cohort.minimum:
            return []
        size = self._manifest.packing.ciphertexts(self._members.layout[1]) * CIPHERTEXT_BYTES
        self._event_log.check_room((2 + (len(present) if self._masks else 0)) * size)
        current.plan = plan = first_attempt(
            self._run, self._manifest, current.number, present, epoch=epoch, keys=keys, model=self._members.model
        )
        self._keep(is_open=True)
        return self._ask_to_train(grid, plan, present)

    def _prepare(self) -> None:
        """Keep the keys of a round that an earlier process left open; before any other, take a newer roster."""
        if self._memory.open:
            self._turn.go_on()
        elif roster := self._newer_roster():
            open_run(self._document, roster)  # sites refuse it as soon as whoever signed it is revoked
            self._members.use_roster(roster)
            self._turn.asks_anew()
            self._event_log.record("roster", version=roster.version, sites=list(self._members.listed))

    def _ask_to_train(self, grid: Grid, plan: RoundPlan, sites: Sequence[str]) -> list[Message]:
        messages = []
        for site in sites:
            sums = self._event_log.missing(self._members.models[site])
            self._round.bytes_down += sum(total.size for total in sums)
            messages.append(self._order(site, plan, sums))
        return self._attention.send(grid, messages, plan.minimum_cohort)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]
                        ) -> tuple[ArrayRecord | None, MetricRecord | None]:  # fmt: skip
        """Verify and add updates as they arrive; release their sum, unless it is below the minimum."""
        del server_round
        current, plan = self._round, self._round.plan
        if plan is None:
            self._close_unreleased("too few sites are ready")
            return None, None
        if self._sum:  # released by an earlier process
            return None, None
        asked, self._memory.asked = self._memory.asked, ()
        total = self._collect(plan, replies, asked)
        if set(asked) - set(total.sites) and len(total.sites) >= plan.minimum_cohort:  # they may have signed their set
            total = self._attempt(next_attempt(plan, total.sites, self._seconds))
        current.contributors = total.sites
        try:
            self._sum = self._masks.unmask(self._grid, current, total, self._attempt) if self._masks else total.close()
        except ProtocolError as error:
            self._close_unreleased(str(error))
            return None, None
        self._release(self._sum)
        return None, None

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                           grid: Grid) -> Iterable[Message]:  # fmt: skip
        """Deliver the sum to every site of the cohort that can open it."""
        del server_round, arrays, config
        total, self._sum = self._sum, None  # its bytes are in memory until the messages are sent, and no longer
        return self._deliver(grid, total) if total else []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Adopt the model that most sites arrived at, and average the metrics that they report.

        Raises:
            RunError: if there is no such model and liars alone cannot be the cause, or the server did not add up what
                it was sent.
        """
        del server_round
        current = self._round
        if not current.released:
            return None
        self._voting.begin()
        models, reports, refusals = self._hear(replies)
        while len(refusals) > len(models) and self._liar_finder.is_convinced(refusals):
            if (result := self._repeat(refusals)) is None:
                return None
            delivered = self._deliver(self._grid, result)
            models, reports, refusals = self._hear(self._grid.send_and_receive(delivered, timeout=self._seconds))
        for site in self._members.settle(models, current.number):
            current.problems[site] = self._members.problems[site]
            del reports[site]
        if not reports:
            self._close_unreleased("too few sites reported that they opened the sum; it will be delivered again")
            return None
        metrics = averaged(reports, self._manifest.settings.cohort.sizes)
        votes = self._count(current)
        self._record(model=self._members.model, metrics=metrics, sharing=sorted(filter(reports.get, reports)), **votes)
        self._voting.undo(self._grid, list(self._members.nodes))  # if the votes say so, and now that it is on disk
        return MetricRecord(dict(metrics))

    def _count(self, current: OpenRound) -> dict[str, Any]:
        """Count the votes on a round; undo it if they say so, and update the suspicion of who spoils rounds."""
        decision, figures = self._voting.decide(current.plan, self._members.model or "", current.contributors)
        if decision is not Decision.UNDONE:
            self._failures = 0
            self.released += 1
            if decision is Decision.KEPT:
                self._selection.sound(current.contributors)
            return figures
        before = self._selection.excluded
        self._selection.spoiled(current.contributors)
        excluded = [site for site in self._selection.excluded if site not in before]
        reason = "undone: too many sites voted that its model is worse"
        if excluded:
            reason += f"; {', '.join(excluded)} spoiled this round and earlier ones, and is left out from now on"
        elif not self._selection.can_part(self._there):
            reason += "; the site responsible cannot be identified, because the minimum cohort can spare no site"
            self._failures += 1
            current.problems |= dict.fromkeys(current.contributors, RESPONSIBLE)
        return {**figures, "reason": reason, "found": excluded}

    def _release(self, result: EncryptedSum) -> None:
        self._interruption.delivering = True
        self._event_log.release(result)
        self._round.released = True

    def _deliver(self, grid: Grid, total: EncryptedSum) -> list[Message]:
        """Begin to deliver a sum to every present site of its plan's cohort."""
        present = [site for site in read_plan(total.plan).cohort if site in self._members.nodes]
        self._round.bytes_down += total.size * len(present)
        return self._attention.send(grid, [self._delivery(site, total) for site in present])

    def _delivery(self, site: str, total: EncryptedSum) -> Message:
        """Return the message that delivers a sum to a site; if the site's update is not in it, say why."""
        current, receipt = self._round, None
        if current.plan and site not in current.contributors:
            reason = current.problems.get(site, "it sent no update for this sum")
            receipt = make_receipt(self._tls, current.plan.digest, site, reason)
        return self._message(site, EVALUATE, Delivery(self._document, [total], receipt))

    def _hear(self, replies: Iterable[Message]) -> Outcomes:
        return hear_outcomes(self._grid, self._members, self._voting, self._round, replies, masked=bool(self._masks))

    def _repeat(self, refusals: Mapping[str, Refusal]) -> EncryptedSum | None:
        """Find the liars behind a sum that does not open, and add up the other updates again.

        Returns:
            The new sum; None if no liar was found, or the others could not all be added up again.

        Raises:
            RunError: if the server did not add up what it was sent.
        """
        current, plan = self._round, self._round.plan
        self._event_log.withdraw()
        current.released = False
        if plan is None or self._masks is None:
            return None
        for site in refusals:
            current.problems.pop(site)
        if missing := set(current.contributors) - self._bodies.sites:  # an earlier process added them up
            missing -= set(self._attempt(plan, current.contributors).sites)
        if missing:
            self._close_unreleased(f"the sum does not open, and not all updates in it came again: {current.listed}")
            return None
        try:
            liars = self._liar_finder.liars(self._grid, plan, self._bodies, current.contributors, refusals)
        except RunError:
            self._keep(is_open=False)  # otherwise every later process would end here too
            raise
        self._members.expel(liars)
        current.problems |= liars
        left = [site for site in current.contributors if site not in liars]
        if not liars:
            self._selection.spoiled(current.contributors)
            if not self._selection.can_part(self._there):  # otherwise the next rounds close in on the liar
                self._failures += 1
            self._record(reason="the sum does not open: the values under the masks are wrong, and nobody can see whose")
            return None
        if len(left) < plan.minimum_cohort:
            self._close_unreleased(f"too few sites are left: {current.listed}")
            return None
        try:
            total = self._attempt(next_attempt(plan, left, self._seconds))
            current.contributors = total.sites
            result = self._masks.unmask(self._grid, current, total, None)
        except ProtocolError as error:
            self._close_unreleased(str(error))
            return None
        self._release(result)
        return result

    def _attempt(self, plan: RoundPlan, only: Sequence[str] = ()) -> RunningSum:
        """Have a plan's cohort, or some of it, send this round's updates again, under the plan's masks."""
        self._round.plan = plan
        self._keep(is_open=True, asked=tuple(only))
        messages = [self._order(site, plan, []) for site in only or plan.cohort if site in self._members.nodes]
        waited = self._attention.send(self._grid, messages, plan.minimum_cohort)
        return self._collect(plan, self._grid.send_and_receive(waited, timeout=self._seconds), only)

    def _collect(self, plan: RoundPlan, replies: Iterable[Message], only: Collection[str] = ()) -> RunningSum:
        """Add updates as they arrive; before contributors are asked to agree, remember who they are."""
        total = self._adder.add_all(self._grid, self._round, plan, replies, only)
        if self._masks:
            self._keep(is_open=True, asked=tuple(only) or total.sites)
        return total

    def _keep(self, *, is_open: bool, asked: tuple[str, ...] = ()) -> None:
        self._memory.keep(self._round, self.released, is_open=is_open, asked=asked)

    def _order(self, site: str, plan: RoundPlan, sums: Sequence[EncryptedSum]) -> Message:
        """Return the order to train. By its ledger head, a site notices a restored old ledger."""
        return self._message(site, TRAIN, Order(self._document, plan.to_bytes(), sums, self._members.heads.of(site)))

    def _message(self, site: str, kind: MessageKind[Q, Any], content: Q) -> Message:
        group, node = str(self._round.number), self._members.nodes[site]
        return Message(kind.pack(content), node, kind.name, ttl=self._seconds, group_id=group)

    def _close_unreleased(self, reason: str) -> None:
        self._failures += 1
        self._record(reason=reason)

    def _record(self, **details: Any) -> None:  # noqa: ANN401
        self._bodies.clear()
        self.ended = self.ended if self._memory.open else self._round.number  # a plan may wait for its sites
        with self._event_log.together():
            self._keep(is_open=False)
            self._event_log.record("round", **self._round.summary(), phases=self._attention.phases(), **details)
        self._attention.let_go()
        self._turn.end()
        self._interruption.delivering = False
