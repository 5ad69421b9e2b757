"""Track who takes part in a run: which node speaks for which site, and with which model.

A node is identified by a signature, not by its connection: its site signs its own name, the node's id and its current
model. So the same strategy is safe on every grid.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Message, MessageType

from privacy.crypto.signing import digest, verify
from privacy.errors import CloisterError, ProtocolError, RunError
from privacy.run.clocks import check_clock, tolerance
from privacy.run.plan import read_plan
from strategies.attention import GRACE, POLL_SECONDS, Attention
from strategies.waiting_events import ELSEWHERE, Waiting
from transport.mask_messages import REFUSAL, Refusal
from transport.messages import EVALUATE, QUERY, Delivery, Query, RoundOutcome
from transport.run_messages import OPENED, Readiness, content_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.serverapp import Grid

    from privacy.codec.header import UpdateHeader
    from privacy.run.roster import Roster
    from strategies.event_log import EventLog
    from strategies.ledger_heads import RunHeads

READINESS = "readiness"
APART = "it reached a different model than most sites, and is left out until it has theirs"
UNDECIDED = "too few other sites report which model they reached"
UNOPENED = "it reports that the sum does not open, but others opened it"
_OTHER = "a different model than most sites; install the same versions of torch and the task"
_OLD = "the server's folder is from an old backup, or lost what it kept last: sign the run again"

Standing = tuple[str, float]  # digest of a model, and the range of updates that start from it
T = TypeVar("T")


@dataclass
class Membership:
    """The sites that take part, and why others do not."""

    manifest: bytes
    run: str
    roster: Roster
    event_log: EventLog
    heads: RunHeads
    attention: Attention
    listed: tuple[str, ...]  # the sites in the manifest
    unattended: bool = False  # whether nobody mends a site meanwhile: what it refuses, it refuses for good
    liars: int = 0  # that the run must tolerate: this many sites' claims decide no round
    nodes: dict[str, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # why others were missing from the last plan
    layouts: dict[str, tuple[str, int]] = field(default_factory=dict)  # layout and size of each site's model
    keys: dict[str, tuple[int, str]] = field(default_factory=dict)  # epoch and fingerprint of each site's keys
    latest: dict[str, int] = field(default_factory=dict)  # the newest epoch that each site has seen
    pairs: dict[str, set[str]] = field(default_factory=dict)  # the sites with which each site shares a mask secret
    bounds: dict[str, float] = field(default_factory=dict)  # the range of each site's next update
    model: str | None = None  # digest of the run's model, once most sites agree on it
    update_bound: float = 0.0  # the range of updates that start from it
    expelled: dict[str, str] = field(default_factory=dict)  # sites proven to lie, and how
    _claimed: dict[int, str] = field(default_factory=dict)  # sites that nodes claim, if not the expected ones
    begun: bool = False  # whether enough sites for a plan have been present

    def use_roster(self, roster: Roster) -> None:
        """Go on under a newer roster: without who left, and asking everybody else again, as their keys are older."""
        names = {member.site for member in roster.members}
        self.roster = roster
        self.__dict__.pop("_expected", None)
        for site in list(self.nodes):
            self.doubt(site)
        for site in set(self.listed) - names:
            self.problems[site] = f"{site} is no longer in the roster"
            self.models.pop(site, None)
        self.listed = tuple(site for site in self.listed if site in names)
        self.keys.clear()
        self.pairs.clear()
        self.attention.forget_queries()

    @property
    def wanted(self) -> set[str]:
        """The sites that may take part."""
        return set(self.listed) - self.expelled.keys()

    def check_enough(self, minimum: int) -> None:
        """Stop a run of which too many sites have left the roster: the others would wait for them in vain.

        Raises:
            RunError: if fewer sites than the minimum are left.
        """
        if len(self.listed) < minimum:
            msg = (
                f"the run needs {minimum} sites, and roster {self.roster.version} has only {len(self.listed)} of those "
                "that it names; sign a new run with sites that are members, or invite who left"
            )
            raise RunError(msg)

    def gather(self, grid: Grid, minimum: int, seconds: float) -> list[str]:
        """Ask new nodes whether they take part; return the sites that are present at the end.

        Gathering ends when enough sites are present and every awaited node has answered; before the first plan, every
        listed site must have answered, yes or no. It also ends after `seconds`, or once all have answered for good.

        Raises:
            RunError: if too few sites start from the same model, or too few of an unattended run take part.
        """
        begun = looked = time.monotonic()
        times, waiting = dict[int, float](), Waiting(self.event_log, begun)
        while True:
            online, now = set(grid.get_node_ids()), time.monotonic()
            self.attention.see(online)
            for message, reply in self.attention.take(grid):
                if message.metadata.message_type == MessageType.QUERY:
                    self._read(grid, message, reply)
            here = sorted(site for site, node in self.nodes.items() if node in online)
            strangers = online - set(self.nodes.values())
            unheard = self.attention.unanswered(MessageType.QUERY) & strangers
            # A site that refused may have been fixed meanwhile: ask it again if the round needs it.
            short = len(here) < minimum and not self.unattended
            new = {
                node for node in strangers - unheard
                if node not in times or (short and now - times[node] > min(1.0, seconds / 10))
            }  # fmt: skip
            if asked := self.attention.reach(new):
                times |= dict.fromkeys(asked, now)
                for node in asked:
                    self._ask(grid, node)
                continue
            if new:  # at work for other runs
                begun += now - looked
            looked = now
            awaited = new | {node for node in unheard if self.attention.waits_for(node, MessageType.QUERY)}
            if now - begun < GRACE * seconds:
                awaited |= unheard & times.keys()
            heard = len(here) + len(strangers & times.keys() - unheard) >= len(self.listed)
            enough = (len(here) >= minimum and (self.begun or heard)) or (self.unattended and heard)
            if now - begun > seconds or (enough and not awaited):
                break
            needed = minimum if self.begun else len(self.listed)
            waiting.say(here, needed, self.problems, self._absent(here, online, new))
            Event().wait(POLL_SECONDS if now - begun < 1 else 5 * POLL_SECONDS)
        self.attention.let_go()
        for node in awaited - new:
            self.attention.silent(node, MessageType.QUERY)
        self.begun = self.begun or len(here) >= minimum
        self.absent = self._absent(here, online, set())
        self.heads.save()
        self._check_begun(here)
        return self._begin(here, minimum) if self.model is None and len(here) >= minimum else here

    def _check_begun(self, here: list[str]) -> None:
        """Stop an unattended run that cannot begin with the sites that are here."""
        if self.unattended and not self.begun:
            _, reason = min((self.problems or self.absent).items())
            msg = f"{len(self.wanted) - len(here)} of {len(self.wanted)} sites do not take part: {reason}"
            raise RunError(msg)

    def _begin(self, here: list[str], minimum: int) -> list[str]:
        """Adopt the initial model that most sites have; return these sites, too few if more must come.

        Raises:
            RunError: if no model has a majority, or too few sites are left that could join it.
        """
        models = {site: (self.models[site], self.bounds[site]) for site in here}
        start = most_say(models)
        others = [site for site in here if models[site] != start]
        agree = len(here) - len(others)
        if start is None or agree + len(self.listed) - len(here) < minimum:
            msg = f"{', '.join(others)} start from {_OTHER}"
            raise RunError(msg)
        for site in others:
            self.doubt(site)
            self.problems[site] = f"{site} starts from {_OTHER}"
        if agree >= minimum:
            self.model, self.update_bound = start
        return [site for site in here if site not in others]

    def _absent(self, here: list[str], online: set[int], elsewhere: set[int]) -> dict[str, str]:
        """Return why listed sites are not here, for those that gave no reason themselves."""
        strangers, reasons = online - set(self.nodes.values()), dict[str, str]()
        for site in set(self.listed) - set(here) - self.problems.keys():
            own = (node := self.roster.member(site).node_id) in online or not strangers <= self._expected.keys()
            reasons[site] = "it has not answered whether it takes part" if own else "it is not online"
            if node in elsewhere:
                reasons[site] = ELSEWHERE
        return reasons

    def names(self) -> dict[int, str]:
        """Return the site that each node speaks for."""
        return {node: site for site, node in self.nodes.items()}

    @property
    def layout(self) -> tuple[str, int]:
        """Layout and size of most sites' model: no single site decides them."""
        return Counter(self.layouts.values()).most_common(1)[0][0]

    def check_shared(self, header: UpdateHeader) -> None:
        """Check that an update has the layout and range of most sites; the first to arrive does not decide them.

        Raises:
            ProtocolError: if it has not.
        """
        if (header.layout, header.size) != self.layout:
            msg = f"{header.site}'s update was not added: its tensors differ from the other sites'"
            raise ProtocolError(msg)
        if header.update_bound != self.update_bound:
            msg = f"{header.site}'s update was not added: the range of its values differs from the other sites'"
            raise ProtocolError(msg)
        self.bounds[header.site] = header.update_bound

    def doubt(self, site: str) -> None:
        """Forget a site's node: its model is unknown until it is asked again."""
        self.nodes.pop(site, None)

    def expel(self, liars: Mapping[str, str]) -> None:
        """Exclude sites that were proven to lie from the run, with the reason for each."""
        self.expelled |= liars
        self.problems |= liars
        for site in liars:
            self.doubt(site)
            self.models.pop(site, None)

    def read_outcome(self, site: str, plan: bytes, reply: Message) -> RoundOutcome | Refusal:
        """Return a site's signed outcome of a plan's sum: the model it reached, or why it did not open the sum.

        Raises:
            CloisterError: if the reply holds no outcome, or its signature is wrong.
        """
        outcome = EVALUATE.read_reply(content_of(reply))
        word, kind = (outcome.opened, OPENED) if isinstance(outcome, RoundOutcome) else (outcome, REFUSAL)
        key = self.roster.member(site).verification_key
        verify(key, kind, word.signed_part(digest("plan", plan)), word.signature)
        return outcome

    def read_standing(self, site: str, plan: bytes, reply: Message) -> Standing:
        """Return the model and range that a site reached with a plan's sum.

        Raises:
            CloisterError: if it reached none, or its signature is wrong.
        """
        outcome = self.read_outcome(site, plan, reply)
        if isinstance(outcome, Refusal):
            raise ProtocolError(UNOPENED)
        return outcome.opened.model, outcome.opened.update_bound

    def settle(self, models: Mapping[str, Standing], round_number: int) -> set[str]:
        """Adopt the model that most sites reached. All others are asked again, and return once they have it.

        Returns:
            The sites that reached another model; all sites, if so few answered that liars may have decided.

        Raises:
            RunError: if no majority reached the same model, and liars alone cannot be the cause.
        """
        agreed = most_say(models)
        if agreed and list(models.values()).count(agreed) <= self.liars:
            agreed = None
        if agreed is None and len(models) > 2 * self.liars:
            digests = ", ".join(f"{site} {model[:12]}" for site, (model, _) in sorted(models.items()))
            msg = f"round {round_number} left the sites with different models: {digests}; the run was stopped"
            raise RunError(msg)
        for site in list(self.nodes):
            if agreed and models.get(site) == agreed:
                self.models[site], self.bounds[site] = agreed
            else:
                self.doubt(site)
        if agreed:
            self.model, self.update_bound = agreed
            self.event_log.confirm(self.model)
        apart = {site for site in models if models[site] != agreed}
        self.problems |= dict.fromkeys(apart, APART if agreed else UNDECIDED)
        return apart

    def deliver_again(self, grid: Grid, sites: list[str], seconds: float) -> list[str]:
        """Deliver the last sum again if no resulting model is confirmed; return the sites that now agree.

        Raises:
            RunError: if no majority reached the same model.
        """
        if not self.event_log.unconfirmed:
            return sites
        number, messages, plan = 0, list[Message](), b""
        # A site whose model is unknown to the event log has opened the last sum.
        models = {site: (self.models[site], self.bounds[site]) for site in sites
                if self.event_log.behind(self.models[site]) is None}  # fmt: skip
        for site in sites:
            sums = self.event_log.missing(self.models[site]) if self.event_log.behind(self.models[site]) == 1 else []
            if len(sums) == 1:  # a site that lacks more sums catches up later
                plan = sums[0].plan
                number, node = read_plan(plan).round, self.nodes[site]
                content = EVALUATE.pack(Delivery(self.manifest, sums))
                messages.append(Message(content, node, MessageType.EVALUATE, ttl=seconds, group_id=str(number)))
        names = self.names()
        for node, reply in self.attention.ask(grid, messages):
            try:
                models[names[node]] = self.read_standing(names[node], plan, reply)
            except CloisterError as error:
                self.problems[names[node]] = str(error)
        return sorted(models.keys() - self.settle(models, number))

    @property
    def behind(self) -> list[str]:
        """The sites that, as far as the server knows, lack the run's last model."""
        return sorted(site for site in self.wanted if self.models.get(site) != self.model) if self.model else []

    @cached_property
    def _tolerance(self) -> float:
        """The most seconds by which a site's clock may differ from this one."""
        return tolerance(self.attention.seconds)

    @cached_property
    def _expected(self) -> dict[int, str]:
        """The site expected at each node id; on grids other than ours, node ids are arbitrary."""
        return {member.node_id: member.site for member in self.roster.members}

    def _ask(self, grid: Grid, node: int) -> None:
        """Ask a node whether it takes part, and send it the ledger head of its site."""
        site = self._claimed.get(node) or self._expected.get(node)
        content = QUERY.pack(Query(self.manifest, self.heads.of(site), time.time()))
        message = Message(content, node, MessageType.QUERY, ttl=self.attention.seconds, group_id="ready")
        self.attention.push(grid, [message])

    def _read(self, grid: Grid, message: Message, reply: Message) -> None:
        """Read a node's answer; ask again if it speaks for a site other than the one whose head it got."""
        node = message.metadata.dst_node_id
        supposed = self._claimed.get(node) or self._expected.get(node)
        try:
            answer = QUERY.read_reply(content_of(reply))
            readiness = answer.readiness
            self._verify(node, readiness)
            check_clock(readiness.site, readiness.clock, message.metadata.created_at, time.time(), self._tolerance)
            if self.heads.of(readiness.site) and readiness.site != supposed:
                self._claimed[node] = readiness.site
                self._ask(grid, node)
                return
            self.heads.note(readiness.site, answer.head)
            self._admit(node, readiness)
        except CloisterError as error:
            self.problems[supposed or f"node {node}"] = str(error)

    def _verify(self, node: int, readiness: Readiness) -> None:
        if readiness.site not in self.listed:
            msg = f"{readiness.site!r} is not a member of this run"
            raise ProtocolError(msg)
        if readiness.site in self.expelled:
            raise ProtocolError(self.expelled[readiness.site])
        signed = readiness.signed_part(self.run, node)
        verify(self.roster.member(readiness.site).verification_key, READINESS, signed, readiness.signature)

    def _admit(self, node: int, readiness: Readiness) -> None:
        site, model = readiness.site, readiness.model
        if self.model is not None and not self.event_log.unconfirmed:
            self._check_model(site, model, readiness.update_bound)
        self.nodes[site] = node
        self.models[site], self.bounds[site] = model, readiness.update_bound
        self.layouts[site] = readiness.layout, readiness.size
        self.keys[site], self.latest[site] = (readiness.epoch, readiness.keys), readiness.latest
        self.pairs[site] = set(readiness.pairs)
        self.problems.pop(site, None)

    def _check_model(self, site: str, model: str, bound: float) -> None:
        """Check that a site has the run's current model, or an earlier one."""
        if model == self.model and bound != self.update_bound:
            msg = f"{site} has the run's model but another range for its updates"
            raise ProtocolError(msg)
        if model == self.model or self.event_log.behind(model) is not None:
            return
        if not self.event_log.started:
            msg = f"{site} starts from {_OTHER}; if most sites do, {_OLD}"
            raise ProtocolError(msg)
        msg = (
            f"{site} has a model that this run never had; if most sites do, {_OLD}; otherwise, move its checkpoint of "
            "this run aside and restart its agent"
        )
        raise ProtocolError(msg)


def most_say(claims: Mapping[str, T]) -> T | None:
    """Return what more than half of the sites say; None if there is no majority.

    >>> most_say({"east": 1, "north": 2, "south": 1})
    1
    """
    claim, count = Counter(claims.values()).most_common(1)[0] if claims else (None, 0)
    return claim if 2 * count > len(claims) else None
