"""The promises of the protocol, checked whenever a message passes, a site trains or opens a sum, or a run ends.

charged     an update leaves a site only after its charge, and the note that it leaves, are on the site's disk
once        a site trains once for a round: after an update has left, whatever asks again gets the same one
same bytes  one update for a plan, and one plan for an attempt, whoever asks and however often
one set     a site signs one set of contributors for a plan, and it has at least as many as the minimum
one seed    a site reveals the seed of its own mask for two plans of a round only if the same honest sites are in both
quorum      no sum is sent or opened that has fewer contributors than the minimum, or one of them twice
exact       an opened sum is the mean of the updates that its contributors sent for this very plan, each once
one model   whoever opens a round's sum reaches the same model
kept first  no plan and no sum is sent before the server has it on disk
no slander  no honest site is called a liar
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.crypto.agreement import set_digest
from privacy.run.plan import read_plan
from simulations.schedules.updates import START, numbers
from transport.messages import AGREE, REVEAL, TRAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flwr.app import RecordDict
    from numpy.typing import NDArray

    from client.site import Site
    from privacy.codec.envelope import Contribution
    from privacy.codec.header import UpdateHeader
    from privacy.codec.update import Model
    from privacy.run.plan import RoundPlan
    from simulations.schedules.disk import Disk

_CLOSE = 2e-3  # that rounding to levels, and what it carried over from the last round, may cost in a mean


class Broken(BaseException):
    """A promise does not hold. Nothing catches it but the schedule."""


class Watch:
    """What has been promised in one schedule so far."""

    def __init__(self, minimum: int, disks: Mapping[str, Disk], liar: str | None) -> None:
        self._minimum, self._disks, self.liar = minimum, disks, liar
        self.checks = 0
        self.broken: Broken | None = None  # the first promise that did not hold
        self._trained = Counter[tuple[str, int]]()
        self._done = set[tuple[str, int]]()  # sites and rounds of updates that have left
        self._left: dict[tuple[str, str], bytes] = {}  # headers, by site and plan
        self._sent: dict[str, NDArray[np.float32]] = {}  # updates, by the digest of their ciphertexts
        self._attempts: dict[tuple[str, int, int], str] = {}  # plans, by site or server, round and attempt
        self._agreed: dict[tuple[str, str], str] = {}
        self._revealed: dict[tuple[str, int], tuple[str, set[str]]] = {}
        self._models: dict[int, str] = {}
        self._opened = set[str]()
        self._values = {START.digest: START.vector}  # of models, by digest
        self.released = dict[int, int]()  # contributors, by round, of sums that sites opened

    def check(self, holds: object, promise: str) -> None:
        """Check one promise.

        Raises:
            Broken: if it does not hold.
        """
        self.checks += 1
        if not holds:
            self.broken = self.broken or Broken(promise)
            raise self.broken

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note an error of the watch itself, which a site would take for one of its own."""
        try:
            yield
        except Exception as error:
            self.broken = Broken(f"the watch failed: {error!r}")
            raise

    def trains(self, site: str, number: int) -> NDArray[np.float32]:
        """Note that a site trains for a round; return its update."""
        self.check((site, number) not in self._done, f"once: {site} trains round {number} again after its update left")
        self._trained[site, number] += 1
        return numbers(site, number, self._trained[site, number])

    def leaves(self, site: Site, kind: str, question: RecordDict, answer: RecordDict) -> None:
        """Check what an honest site sends in answer to a question."""
        if kind == TRAIN.name:
            self._update_leaves(site, read_plan(TRAIN.read(question).plan), answer)
        elif kind in {AGREE.name, REVEAL.name}:
            shown = AGREE.read(question)
            plan, headers = read_plan(shown.plan), _by_site(shown.contributions)
            named = f"round {plan.round}, attempt {plan.attempt}"
            self.check(len(headers) >= self._minimum, f"one set: {site.name} takes {len(headers)} sites for {named}")
            if kind == AGREE.name:
                digest = set_digest(headers)
                before = self._agreed.setdefault((site.name, plan.digest), digest)
                self.check(before == digest, f"one set: {site.name} signs two sets for {named}")
            else:
                honest = headers.keys() - {self.liar}
                digest, others = self._revealed.setdefault((site.name, plan.round), (plan.digest, honest))
                self.check(
                    digest == plan.digest or others == honest,
                    f"one seed: {site.name} reveals two in round {plan.round}",
                )

    def _update_leaves(self, site: Site, plan: RoundPlan, answer: RecordDict) -> None:
        update, named = TRAIN.read_reply(answer).update, f"round {plan.round}, attempt {plan.attempt}"
        header = json.loads(update.header)
        before = self._left.setdefault((site.name, plan.digest), update.header)
        self.check(before == update.header, f"same bytes: {site.name} sends two updates for {named}")
        first = self._attempts.setdefault((site.name, plan.round, plan.attempt), plan.digest)
        self.check(first == plan.digest, f"same bytes: {site.name} makes updates for two plans of {named}")
        ledger = self._disks[site.name].read(site.ledger.path) or b""
        events = [json.loads(line.split(b" ", 2)[2]) for line in ledger.splitlines(keepends=True) if line[-1:] == b"\n"]
        charged = [event for event in events if event.get("round") == plan.round and "steps" in event]
        self.check(charged, f"charged: {site.name} sends its update of {named}, and its disk has no charge")
        again = Counter(event["attempt"] for event in charged).most_common(1)[0][1]
        self.check(again == 1, f"charged: {site.name} charges {named} {again} times")
        noted = sha256(update.header).hexdigest()
        self.check(
            any(event.get("left") == noted and event["round"] == plan.round for event in events),
            f"charged: {site.name} sends its update of {named}, and its disk does not say so",
        )
        self._done.add((site.name, plan.round))
        self._sent[header["ciphertexts"]] = numbers(site.name, plan.round, self._trained[site.name, plan.round])

    def planned(self, plan: RoundPlan, state: bytes) -> None:
        """Check a plan that the server sends, and the run's state on its disk."""
        named = f"round {plan.round}, attempt {plan.attempt}"
        first = self._attempts.setdefault(("server", plan.round, plan.attempt), plan.digest)
        self.check(first == plan.digest, f"same bytes: the server makes two plans for {named}")
        self.check(
            plan.to_bytes().decode() == json.loads(state or b"{}").get("plan"), f"kept first: {named} is not kept"
        )
        self.check(plan.minimum_cohort >= self._minimum, f"quorum: {named} is planned below the minimum")

    def summed(self, plan: RoundPlan, contributions: Sequence[Contribution], *, kept: bool) -> None:
        """Check the contributors of a sum that the server sends, and that it is on its disk."""
        self.check(kept, f"kept first: the sum of round {plan.round} is sent, and is not kept")
        headers = [json.loads(part.header) for part in contributions]
        sites = [header["site"] for header in headers]
        self.check(
            all(header["plan"] == plan.digest for header in headers),
            f"exact: the server adds an update of another plan to round {plan.round}, attempt {plan.attempt}",
        )
        self.check(len(sites) >= self._minimum, f"quorum: the server sends round {plan.round} of {len(sites)} sites")
        self.check(len(set(sites)) == len(sites), f"quorum: the server sends round {plan.round} with a site twice")

    def opens(self, site: str, model: Model, headers: Mapping[str, UpdateHeader]) -> None:
        """Check a sum that a site has opened."""
        first = next(iter(headers.values()))
        named = f"{site} opens round {first.round}"
        self.check(len(headers) >= self._minimum, f"quorum: {named} of {len(headers)} sites")
        self.check(all(header.plan == first.plan for header in headers.values()), f"exact: {named} of several plans")
        before = self._models.setdefault(first.round, model.digest)
        self.check(before == model.digest, f"one model: {named} and reaches another model than others")
        updates = [self._sent.get(header.ciphertexts) for name, header in headers.items() if name != self.liar]
        self.check(all(update is not None for update in updates), f"exact: {named} with an update that nobody sent")
        if self.liar not in headers:
            mean = model.vector - self._values[first.base_model]
            expected = np.mean([update for update in updates if update is not None], axis=0)
            self.check(
                np.abs(mean - expected).max() < _CLOSE, f"exact: {named} and its mean is not that of the updates"
            )
        self._values[model.digest] = model.vector.copy()
        self._opened.add(site)
        self.released[first.round] = len(headers)

    def ends(self, model: str | None, models: Mapping[str, str]) -> None:
        """Check where a run has ended: the server's model, and that of each honest site."""
        took_part = {site for site, _ in self._done} | self._opened - {self.liar}
        apart = [site for site, own in models.items() if site in took_part and own != model]
        self.check(not apart, f"progress: the run ended, and {', '.join(apart)} did not get its model")


def _by_site(contributions: Sequence[Contribution]) -> dict[str, bytes]:
    return {json.loads(part.header)["site"]: part.header for part in contributions}
