"""A malicious aggregation server: it exchanges real bytes with real sites, and has whatever a server has.

It asks sites to make keys and to train, like any server. The other modules of `simulations.attacks` hold what it then
does with their answers.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from hashlib import sha256
from shutil import copytree, rmtree
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import Context, RecordDict

from client.app import make_app
from client.settings import read_site
from client.site import Site
from privacy.errors import RunError
from privacy.run.plan import RoundPlan
from server.settings import read_consortium
from simulations.attacks.transcript import Run, Transcript
from simulations.engine.inline import InlineGrid
from transport.flower import REFUSED
from transport.mask_messages import find_refusal
from transport.messages import (
    ACCEPT,
    AGREE,
    EVALUATE,
    LEAD,
    PAIRS,
    QUERY,
    REVEAL,
    TRAIN,
    ContributorSet,
    Delivery,
    Letter,
    Order,
    Pairs,
    Query,
    RoundOutcome,
)
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from flwr.app import Message

    from privacy.codec.envelope import Contribution, SignedUpdate
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation
    from transport.messages import MessageKind

SITES = ("north", "south", "east", "west")
SECONDS = 600.0  # of a round
Q = TypeVar("Q")
_KEPT = "models/*", "keys/epochs/*", "ledger/*"


class MaliciousServer:
    """The server of one consortium, and the random generator that chooses its attacks."""

    def __init__(self, federation: Federation, rng: np.random.Generator) -> None:
        self.federation, self.rng = federation, rng
        self.roster = read_consortium(federation.server).roster()
        self.nodes = {site: self.roster.member(site).node_id for site in SITES}
        self._names = {node: site for site, node in self.nodes.items()}
        self._agents: dict[str, Site] = {}
        contexts = {node: Context(0, node, {}, RecordDict(), {}) for node in self._names}
        self._grid = InlineGrid(0, contexts, make_app(lambda context: self.site(self._names[context.node_id])))
        self.runs: dict[str, Run] = {}
        self.untrained = ""
        self.epoch, self.keys = 0, ""
        self.relay(*self.lead(self.pick()))

    def pick(self) -> str:
        """Choose a random site."""
        return str(self.rng.choice(SITES))

    def site(self, name: str) -> Site:
        """Open a site's folder, as its agent or a colluding server does."""
        if name not in self._agents:
            self._agents[name] = Site(read_site(self.federation.paths[name]))
        return self._agents[name]

    def pick_run(self) -> Run:
        """Choose a random run whose sums need not include all sites."""
        return self.runs[str(self.rng.choice([name for name, run in self.runs.items() if run.minimum < len(SITES)]))]

    def shuffled(self) -> list[str]:
        """Return all sites in random order."""
        return [str(site) for site in self.rng.permutation(SITES)]

    def sign(self, settings: RunSettings) -> Run:
        """Have the coordinator sign a run."""
        return Run.read(self.federation.sign(settings).read_bytes(), self.roster)

    def start(self, settings: RunSettings) -> None:
        """Have the coordinator sign a run, and play one honest round of it."""
        run = self.runs[settings.name] = self.sign(settings)
        self.play_fair(run)
        self.untrained = run.honest.plan.base_model

    def restart(self, *sites: str) -> None:
        """Restart agents: they lose what they had in memory."""
        for site in sites:
            self._agents.pop(site, None)

    @contextmanager
    def new_agents(self) -> Iterator[None]:
        """Replace the agents within this context with new ones, which open the sites' folders as they are."""
        own, self._agents = self._agents, {}
        try:
            yield
        finally:
            self._agents = own

    def copy(self, site: str) -> Path:
        """Copy a site's folder, as a backup does."""
        copy = self.federation.folder / "backup"
        rmtree(copy, ignore_errors=True)
        copytree(self.federation.paths[site], copy)
        return copy

    def restore(self, site: str, copy: Path) -> None:
        """Replace a site's folder with its backup, and restart its agent."""
        rmtree(self.federation.paths[site])
        copytree(copy, self.federation.paths[site])
        self.restart(site)

    def ask_all(self, kind: MessageKind[Q, Any], question: Q) -> dict[str, Message]:
        """Ask all sites the same question; return their replies."""
        return self.ask(kind, dict.fromkeys(SITES, question))

    def ask(self, kind: MessageKind[Q, Any], questions: Mapping[str, Q]) -> dict[str, Message]:
        """Ask each of some sites its own question; return their replies."""
        messages = [
            self._grid.create_message(kind.pack(request), kind.name, self.nodes[site], "0")
            for site, request in questions.items()
        ]
        replies = self._grid.send_and_receive(messages, timeout=SECONDS)
        return {self._names[reply.metadata.src_node_id]: reply for reply in replies}

    def state(self) -> dict[Path, str]:
        """Return a digest of every model, key epoch and ledger on the sites' disks."""
        folders = [self.federation.paths[site] for site in SITES]
        files = [path for folder in folders for part in _KEPT for path in folder.glob(part)]
        return {path: _digest(path, *_marks(path)) for path in files}

    def lead(self, leader: str) -> tuple[str, dict[str, bytes]]:
        """Have a site make a new epoch's keys; return the site, and its letters, not yet delivered."""
        keys = LEAD.read_reply(content_of(self.ask(LEAD, {leader: self.epoch + 1})[leader]))
        self.epoch, self.keys = keys.epoch, keys.fingerprint
        return leader, dict(keys.letters)

    def relay(self, leader: str, letters: Mapping[str, bytes]) -> None:
        """Deliver the keys that one site made to all sites, then their mask secrets."""
        self.share(self.accept(leader, letters))

    def accept(self, leader: str, letters: Mapping[str, bytes]) -> dict[str, Mapping[str, bytes]]:
        """Deliver the keys that one site made to all; return their letters with mask secrets, by sender and recipient.

        Raises:
            RunError: if a site does not accept them.
        """
        contents = {site: Letter(leader, letters[site]) for site in SITES}
        replies = {site: ACCEPT.read_reply(content_of(reply)) for site, reply in self.ask(ACCEPT, contents).items()}
        if any(keys.epoch != self.epoch for keys in replies.values()):
            msg = f"a site did not accept the keys of key epoch {self.epoch}; this benchmark is broken"
            raise RunError(msg)
        return {site: keys.pairs for site, keys in replies.items()}

    def share(self, own: Mapping[str, Mapping[str, bytes]]) -> dict[str, list[str]]:
        """Deliver mask secrets to all sites; return the sites with which each now shares one."""
        pairs = {site: {other: own[other][site] for other in SITES if other < site} for site in SITES}
        replies = self.ask(PAIRS, {site: Pairs(self.keys, pair) for site, pair in pairs.items()})
        return {site: PAIRS.read_reply(content_of(reply)).names for site, reply in replies.items()}

    def plan(self, run: Run, cohort: tuple[str, ...] = ()) -> RoundPlan:
        """Plan the next round of a run, by default for all sites in its manifest, present or absent."""
        run.rounds += 1
        reply = content_of(self.ask(QUERY, {SITES[0]: Query(run.document)})[SITES[0]])
        return RoundPlan(
            run=run.digest,
            round=run.rounds,
            attempt=1,
            cohort=cohort or tuple(run.manifest.settings.cohort.sizes),
            roster_version=1,
            epoch=self.epoch,
            keys=self.keys,
            minimum_cohort=run.manifest.settings.cohort.minimum,
            deadline=time.time() + SECONDS,
            base_model=QUERY.read_reply(reply).readiness.model,
        )

    def train(self, run: Run, plan: RoundPlan, sites: Sequence[str] = SITES) -> Transcript:
        """Collect the updates of `sites` that are in the plan's cohort; by default, of all present sites."""
        order = Order(run.document, plan.to_bytes())
        replies = self.ask(TRAIN, {site: order for site in sites if site in plan.cohort})
        updates: dict[str, SignedUpdate] = {
            site: TRAIN.read_reply(content_of(reply)).update for site, reply in replies.items()
        }
        return Transcript(run, plan, updates)

    def collect(self, run: Run) -> Transcript:
        """Collect the updates of a new round and, in a run with masks, their seeds."""
        transcript = self.train(run, self.plan(run))
        if not run.masked:
            return transcript
        signatures, pairs = self.agreed(transcript, *transcript.updates)
        transcript = replace(transcript, signatures=signatures, pairs=pairs)
        replies = self.reveal(transcript, signatures)
        return replace(
            transcript, reveals={site: REVEAL.read_reply(content_of(reply)) for site, reply in replies.items()}
        )

    def agree(self, transcript: Transcript, *contributors: str, sites: Sequence[str] = ()) -> dict[str, Message]:
        """Ask `sites`, by default the contributors, to agree on the contributors."""
        question = ContributorSet(
            transcript.run.document, transcript.plan.to_bytes(), transcript.contributions(*contributors)
        )
        return self.ask(AGREE, dict.fromkeys(sites or contributors, question))

    def agreed(
        self, transcript: Transcript, *contributors: str, sites: Sequence[str] = ()
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Have sites agree on the contributors; return their signatures, and the seeds that they gave."""
        answers = self.agree(transcript, *contributors, sites=sites)
        replies = {site: AGREE.read_reply(content_of(reply)) for site, reply in answers.items()}
        return ({site: reply.signature for site, reply in replies.items()},
                {site: reply.sealed for site, reply in replies.items()})  # fmt: skip

    def reveal(
        self, transcript: Transcript, signatures: Mapping[str, bytes], sites: Sequence[str] = SITES
    ) -> dict[str, Message]:
        """Ask sites for the seeds of their masks, showing the signatures of the contributors."""
        return self.show(transcript, transcript.contributions(*signatures), signatures, sites)

    def show(
        self,
        transcript: Transcript,
        contributions: Sequence[Contribution],
        signatures: Mapping[str, bytes],
        sites: Sequence[str],
    ) -> dict[str, Message]:
        """Ask sites for the seeds of their masks, showing these headers and signatures."""
        question = ContributorSet(transcript.run.document, transcript.plan.to_bytes(), contributions, signatures)
        return self.ask(REVEAL, dict.fromkeys(sites, question))

    def deliver(self, run: Run, total: EncryptedSum) -> bool:
        """Deliver a sum to all sites, as this round's or as a missed one; return whether all refuse it."""
        before = self.state()
        if self.rng.integers(2):
            order = Order(run.document, self.plan(run).to_bytes(), [total])
            return self.refused(self.ask_all(TRAIN, order), before)
        return self.refused(self.ask_all(EVALUATE, Delivery(run.document, [total])), before)

    def refused(self, replies: Mapping[str, Message], before: dict[Path, str]) -> bool:
        """Whether all replies are refusals, and no site's models, keys or ledgers have changed."""
        return all(map(_is_refusal, replies.values())) and bool(replies) and self.state() == before

    def play_fair(self, run: Run) -> None:
        """Play one honest round of a run.

        Raises:
            RunError: if a site refuses it, because its other refusals would then prove nothing.
        """
        run.last = self.collect(run)
        self.open(run.last)

    def open(self, transcript: Transcript) -> None:
        """Have all sites open the sum of their updates.

        Raises:
            RunError: if they do not, or reach different models.
        """
        total = transcript.sum(transcript.total(*transcript.updates), transcript.contributions(*transcript.updates))
        replies = self.ask_all(EVALUATE, Delivery(transcript.run.document, [total])).values()
        outcomes = [EVALUATE.read_reply(content_of(reply)) for reply in replies]
        models = [outcome.opened.model for outcome in outcomes if isinstance(outcome, RoundOutcome)]
        if len(models) < len(outcomes) or len(set(models)) != 1:
            msg = "the sites have different models after an honest round; this benchmark is broken"
            raise RunError(msg)


def _marks(path: Path) -> tuple[int, int, int]:
    """Return marks that change when a file is replaced or grows."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@cache
def _digest(path: Path, *marks: int) -> str:
    """Return the digest of a file; it is read again only if its marks have changed."""
    del marks
    return sha256(path.read_bytes()).hexdigest()


def _is_refusal(reply: Message) -> bool:
    """Whether a reply is a refusal: an error or, to a masked sum, the reason why it does not open."""
    return reply.error.code == REFUSED if reply.has_error() else find_refusal(reply.content) is not None
