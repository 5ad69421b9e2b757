"""Encrypted federated averaging, the server's half: a Flower `Strategy` that adds what it cannot read.

What Flower passes on as "the model" from round to round is here the encrypted sum. A round:

1. Plan:  ask who is there, and bind cohort, model, deadline and minimum into one plan (`configure_train`).
2. Add:   verify each update as it arrives, add it modulo q, close at the deadline (`aggregate_train`).
3. Open:  deliver the sum; every site decrypts and applies it (`configure_evaluate`).
4. Agree: all sites must arrive at the same model (`aggregate_evaluate`).

Below the minimum cohort nothing is released and the model stays.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp.strategy import Strategy

from privacy.ciphertext import CIPHERTEXT_BYTES
from privacy.envelope import verify_update
from privacy.errors import CloisterError, ProtocolError, RunError
from privacy.shared import colluding_sites
from privacy.summation import RunningSum
from strategies.attention import Attention
from strategies.ceremony import Ceremony
from strategies.masking import Masking
from strategies.membership import Membership
from strategies.metrics import averaged
from strategies.rounds import OpenRound, first_attempt
from strategies.selection import Selection
from transport.contents import (
    content_of,
    pack_sum,
    pack_train,
    read_opened,
    read_update,
    sum_from_arrays,
    sum_to_arrays,
)
from transport.flower import FAILED, REFUSED
from transport.heads import find_head, put_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from flwr.serverapp import Grid

    from privacy.manifest import SignedRun
    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from strategies.heads import Heads
    from strategies.journal import Journal
    from strategies.letters import Letters

_LAST = 0.1  # of a deadline: for a site that is behind to come back before the run ends
_MOST_FAILURES = 3  # rounds in a row that release nothing end the run


class EncryptedFedAvg(Strategy):
    """Federated averaging over ciphertexts. Weights are the sizes that sites declare in the manifest."""

    def __init__(self, run: SignedRun, roster: Roster, journal: Journal, letters: Letters, heads: Heads, *,
                 new_epoch: bool) -> None:  # fmt: skip
        self._document, self._manifest, self._run = run.document, run.manifest, run.digest
        self._roster, self._journal = roster, journal
        cohort = self._manifest.settings.cohort
        self._attention = Attention(cohort.round_deadline_seconds)
        self._members = Membership(
            run.document, run.digest, roster, journal, heads, self._attention, tuple(cohort.sizes)
        )
        masked = self._manifest.settings.encryption.collusion_resistant
        self._ceremony = Ceremony(self._members, letters, journal, new_epoch=new_epoch, masked=masked)
        self._selection = Selection(self._members, cohort.minimum)
        colluding = colluding_sites(self._manifest.settings)
        proofs = self._manifest.settings.encryption.update_norm is not None
        self._masks = Masking(self._members, self._selection, colluding, proofs=proofs) if masked else None
        self._before = self._round = OpenRound(0)
        self._seconds = cohort.round_deadline_seconds
        self._failures = 0
        self.released = 0

    @property
    def model(self) -> str | None:
        """Digest of the model that the sites have."""
        return self._members.model

    def finish(self, grid: Grid) -> None:
        """Bring sites that missed a round's sum up to date, when all rounds are over."""
        self._members.catch_up(grid, _LAST * self._seconds)

    def summary(self) -> None:
        """Flower asks strategies to log their settings; ours are in the manifest."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                        grid: Grid) -> Iterable[Message]:  # fmt: skip
        """Plan the round, and ask the cohort to train.

        Raises:
            RunError: if too many rounds in a row released nothing, or another one would not either.
        """
        del arrays, config
        self._round.check_repeated(self._before, started=self._journal.started)
        for site in self._round.refused:
            self._members.doubt(site)  # whether it is ready costs nothing to ask
        if self._failures >= _MOST_FAILURES:
            msg = f"{self._failures} rounds in a row released nothing: {self._round.listed}"
            raise RunError(msg)
        self._before, self._round = self._round, (current := OpenRound(server_round))
        self._grid, cohort, seconds = grid, self._manifest.settings.cohort, self._seconds
        present = self._members.gather(grid, cohort.minimum, seconds)
        if self._journal.unconfirmed:
            present = self._members.deliver_again(grid, present, seconds)
        current.problems |= self._members.absent | self._members.problems
        current.started = time.monotonic()  # what came before was waiting for sites
        if len(present) < cohort.minimum or self._members.model is None:
            return []
        present = self._selection.choose(present, server_round, current.problems)
        epoch, keys, present = self._ceremony.agree(grid, present, cohort.minimum)
        self._journal.check_room(2 * self._manifest.packing.ciphertexts(self._members.layout[1]) * CIPHERTEXT_BYTES)
        current.plan = plan = first_attempt(
            self._run, self._manifest, server_round, present, epoch=epoch, keys=keys, model=self._members.model
        )
        messages = []
        for site in present:
            sums = self._journal.missing(self._members.models[site])
            current.bytes_down += sum(each.size for each in sums)
            content = pack_train(self._document, plan.to_bytes(), sums)
            messages.append(self._message(site, MessageType.TRAIN, content))
        return self._attention.send(grid, messages, cohort.minimum)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]
                        ) -> tuple[ArrayRecord | None, MetricRecord | None]:  # fmt: skip
        """Verify and add updates as they arrive; return the encrypted sum, or nothing below the minimum."""
        del server_round
        current, plan = self._round, self._round.plan
        if plan is None:
            self._close_unreleased("too few sites are ready")
            return None, None
        total = self._collect(plan, replies)
        current.contributors = total.sites
        try:
            result = self._masks.unmask(self._grid, current, total, self._attempt) if self._masks else total.close()
        except ProtocolError as error:
            self._close_unreleased(str(error))
            return None, None
        self._journal.release(result)
        current.released = True
        return sum_to_arrays(result), None

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord,
                           grid: Grid) -> Iterable[Message]:  # fmt: skip
        """Deliver the sum to every site of the cohort that can open it."""
        del server_round, config
        current = self._round
        if not current.released or current.plan is None:
            return []
        total = sum_from_arrays(arrays)
        there = [site for site in current.plan.cohort if site in self._members.nodes]
        current.bytes_down += total.size * len(there)
        messages = [self._message(site, MessageType.EVALUATE, pack_sum(self._document, total)) for site in there]
        return self._attention.send(grid, messages)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Check that all sites arrived at one model, and average the metrics that they let out.

        Raises:
            RunError: if they did not.
        """
        del server_round
        current = self._round
        if not current.released or current.plan is None:
            return None
        models: dict[str, str] = {}
        told: dict[str, Mapping[str, float]] = {}
        names = self._members.names()
        for node, reply in self._attention.hear(self._grid, replies, lambda: bool(models)):
            if (site := names[node]) in models:
                continue
            try:
                models[site], metrics = read_opened(content_of(reply))
                told[site] = current.hear(site, metrics)
            except CloisterError as error:
                current.problems[site] = str(error)
        self._members.settle(models, current.number)
        if not models:
            self._failures += 1
            self._record(reason="no site opened the sum, or none could say so; it is delivered again")
            return None
        found = averaged(told, self._manifest.settings.cohort.sizes)
        self._failures = 0
        self.released += 1
        self._record(model=self._members.model, metrics=found, sharing=sorted(site for site in told if told[site]))
        return MetricRecord(dict(found))

    def _attempt(self, plan: RoundPlan) -> RunningSum:
        """Have a plan's cohort send their updates of this round again, under its masks."""
        self._round.plan = plan
        content = pack_train(self._document, plan.to_bytes(), [])
        messages = [self._message(site, MessageType.TRAIN, content) for site in plan.cohort]
        waited = self._attention.send(self._grid, messages, plan.minimum_cohort)
        return self._collect(plan, self._grid.send_and_receive(waited, timeout=self._seconds))

    def _collect(self, plan: RoundPlan, replies: Iterable[Message]) -> RunningSum:
        """Add updates as they arrive; note who sent none."""
        total, silent, problems = RunningSum(plan), set(plan.cohort), self._round.problems
        names, added = self._members.names(), set[str]()
        for node, reply in self._attention.hear(self._grid, replies, lambda: len(added) >= plan.minimum_cohort):
            site = names[node]
            silent.discard(site)
            if site in added:  # the same reply again, or something else after it
                continue
            try:
                self._add(total, site, reply)
                added.add(site)
            except CloisterError as error:
                problems[site] = str(error)
                if reply.has_error() and reply.error.code in {FAILED, REFUSED}:  # its own word, not its engine's
                    self._round.refused[site] = str(error)
        self._members.heads.save()
        for site in silent:
            problems[site] = "no update by the round's deadline"
            if self._members.nodes[site] in self._attention.asked(MessageType.TRAIN):
                problems[site] = "no update yet; it let a round down before, and is not waited for until it sends one"
            self._members.doubt(site)
        return total

    def _add(self, total: RunningSum, site: str, reply: Message) -> None:
        signed, report = read_update(content_of(reply))
        update = verify_update(signed, site, total.plan, self._manifest, self._roster)
        self._members.heads.note(site, find_head(reply.content))
        self._members.check_layout(update.header)
        total.add(update)
        # Training started from the run's model, so that is the model which the site has now.
        self._members.models[site] = total.plan.base_model
        self._round.bytes_up += sum(map(len, signed.chunks)) + len(signed.header) + len(signed.signature)
        self._round.problems.pop(site, None)
        for spent in self._round.hear(site, report).values():  # of ε alone, if at all
            self._round.epsilon[site] = spent

    def _message(self, site: str, kind: str, content: Any) -> Message:  # noqa: ANN401 - a RecordDict
        if kind == MessageType.TRAIN:  # what is charged now comes after what was charged before
            put_head(content, self._members.heads.of(site))
        return Message(content, self._members.nodes[site], kind, ttl=self._seconds, group_id=str(self._round.number))

    def _close_unreleased(self, reason: str) -> None:
        self._failures += 1
        self._record(reason=reason)

    def _record(self, **details: Any) -> None:  # noqa: ANN401
        self._journal.record("round", **self._round.summary(), **details)
