"""Who takes part in a run, as the server sees it: which node speaks for which site, and with which model.

A node is known by what it proves, not by the connection that it came over: its site signs its own name, the
node's number and the model that it has. So the same strategy is safe on every grid.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from privacy.clocks import check_clock, tolerance
from privacy.errors import CloisterError, ProtocolError, RunError
from privacy.plan import read_plan
from privacy.signing import verify
from strategies.attention import GRACE, POLL_SECONDS, Attention
from strategies.waiting import Waiting
from transport.contents import Readiness, content_of, pack_query, pack_sum, read_opened, read_readiness
from transport.heads import find_head, put_head

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from privacy.header import UpdateHeader
    from privacy.roster import Roster
    from strategies.heads import Heads
    from strategies.journal import Journal

READINESS = "readiness"


@dataclass
class Membership:
    """The sites that said yes, and why others did not."""

    manifest: bytes
    run: str
    roster: Roster
    journal: Journal
    heads: Heads
    attention: Attention
    listed: tuple[str, ...]  # the sites that the run names
    nodes: dict[str, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # why others were not there when the last plan was made
    layouts: dict[str, tuple[str, int]] = field(default_factory=dict)  # layout and size of each site's model
    keys: dict[str, tuple[int, str]] = field(default_factory=dict)  # epoch and fingerprint that each site has
    latest: dict[str, int] = field(default_factory=dict)  # the newest epoch that each site has seen
    pairs: dict[str, set[str]] = field(default_factory=dict)  # with whom each site shares a secret for masks
    model: str | None = None  # the model of the run, once sites agree on one
    _claimed: dict[int, str] = field(default_factory=dict)  # for whom nodes speak, if not for those expected
    begun: bool = False  # whether a plan could be made

    def gather(self, grid: Grid, minimum: int, seconds: float) -> list[str]:
        """Ask new nodes whether they take part; return who is there when it is over.

        It is over when enough are there and every node that is waited for has answered: for the first plan, every site
        that the run lists, said yes or no. Or when the time is over.

        Raises:
            RunError: if sites start from different models.
        """
        begun = time.monotonic()
        asked, waiting = dict[int, float](), Waiting(self, minimum, begun)
        while True:
            online, now = set(grid.get_node_ids()), time.monotonic()
            self.attention.see(online)
            for message, reply in self.attention.take(grid):
                if message.metadata.message_type == MessageType.QUERY:
                    self._read(grid, message, reply)
            here = sorted(site for site, node in self.nodes.items() if node in online)
            strangers = online - set(self.nodes.values())
            unheard = self.attention.asked(MessageType.QUERY) & strangers
            # A site that refused may have been mended meanwhile: it is asked again if the round cannot do without it.
            new = {
                node for node in strangers - unheard
                if node not in asked or (len(here) < minimum and now - asked[node] > min(1.0, seconds / 10))
            }  # fmt: skip
            if new:
                asked |= dict.fromkeys(new, now)
                for node in new:
                    self._ask(grid, node)
                continue
            awaited = {node for node in unheard if self.attention.waits_for(node, MessageType.QUERY)}
            if now - begun < GRACE * seconds:
                awaited |= unheard & asked.keys()
            everybody = self.begun or len(here) + len(strangers & asked.keys() - unheard) >= len(self.listed)
            if now - begun > seconds or (len(here) >= minimum and everybody and not awaited):
                break
            waiting.say(here, self._absent(here, online))
            Event().wait(POLL_SECONDS if now - begun < 1 else 5 * POLL_SECONDS)
        for node in awaited:
            self.attention.silent(node, MessageType.QUERY)
        self.begun = self.begun or len(here) >= minimum
        self.absent = self._absent(here, online)
        self.heads.save()
        return here

    def _absent(self, here: list[str], online: set[int]) -> dict[str, str]:
        """Return why listed sites are not here, as far as they did not say so themselves."""
        strangers, reasons = online - set(self.nodes.values()), dict[str, str]()
        for site in set(self.listed) - set(here) - self.problems.keys():
            own = self.roster.member(site).node_id in online or not strangers <= self._expected.keys()
            reasons[site] = "it has not said whether it takes part" if own else "it is not online"
        return reasons

    def names(self) -> dict[int, str]:
        """Return which site each node speaks for."""
        return {node: site for site, node in self.nodes.items()}

    @property
    def layout(self) -> tuple[str, int]:
        """Layout and size of the model that most sites have: one site alone decides nothing."""
        return Counter(self.layouts.values()).most_common(1)[0][0]

    def check_layout(self, header: UpdateHeader) -> None:
        """Hold an update against the model that most sites have, so that the first to come decides nothing.

        Raises:
            ProtocolError: if it is of another.
        """
        if (header.layout, header.size) != self.layout:
            msg = f"{header.site}'s update was not added: its model has other tensors than the other sites'"
            raise ProtocolError(msg)

    def doubt(self, site: str) -> None:
        """Forget what a site said: its model is unknown until it is asked again."""
        self.nodes.pop(site, None)

    def settle(self, models: dict[str, str], round_number: int) -> None:
        """Note which model each site has arrived at; those that did not say are asked again.

        Raises:
            RunError: if the models differ.
        """
        if len(set(models.values())) > 1:
            said = ", ".join(f"{site} {model[:12]}" for site, model in sorted(models.items()))
            msg = f"round {round_number} left the sites with different models: {said}; the run was stopped"
            raise RunError(msg)
        for site in list(self.nodes):
            if site in models:
                self.models[site] = models[site]
            else:
                self.doubt(site)
        if models:
            self.model = next(iter(models.values()))
            self.journal.confirm(self.model)

    def deliver_again(self, grid: Grid, sites: list[str], seconds: float) -> list[str]:
        """Deliver the last sum once more: it is out, but no site told where it leads. Return the sites that now did.

        Raises:
            RunError: if the models differ.
        """
        number, messages = 0, []
        for site in sites:
            sums = self.journal.missing(self.models[site]) if self.journal.behind(self.models[site]) == 1 else []
            if len(sums) == 1:  # who lacks more catches up when the others have gone on
                number, node = read_plan(sums[0].plan).round, self.nodes[site]
                content = pack_sum(self.manifest, sums[0])
                messages.append(Message(content, node, MessageType.EVALUATE, ttl=seconds, group_id=str(number)))
        models, names = dict[str, str](), self.names()
        for node, reply in self.attention.ask(grid, messages):
            try:
                models[names[node]], _ = read_opened(content_of(reply))
            except CloisterError as error:
                self.problems[names[node]] = str(error)
        self.settle(models, number)
        return sorted(models)

    def catch_up(self, grid: Grid, seconds: float) -> None:
        """Bring sites the sums that they missed, as a run ends: each shall have its model."""
        behind = [site for site, model in self.models.items() if self.journal.behind(model)]
        if not behind:
            return
        self.gather(grid, len(self.models), seconds)
        for site in (site for site in behind if site in self.nodes):
            for total in self.journal.missing(self.models[site]):
                content, node = pack_sum(self.manifest, total), self.nodes[site]
                message = Message(content, node, MessageType.EVALUATE, ttl=seconds, group_id="catch-up")
                for _, reply in self.attention.ask(grid, [message]):
                    try:
                        self.models[site], _ = read_opened(content_of(reply))
                    except CloisterError as error:
                        self.problems[site] = str(error)

    @cached_property
    def _tolerance(self) -> float:
        """Seconds by which a site's clock and this one may differ."""
        return tolerance(self.attention.seconds)

    @cached_property
    def _expected(self) -> dict[int, str]:
        """The sites' own nodes; on other grids than ours, nodes have any number."""
        return {member.node_id: member.site for member in self.roster.members}

    def _ask(self, grid: Grid, node: int) -> None:
        """Ask a node whether it takes part, and bring it the head of the ledger of the site that it speaks for."""
        site = self._claimed.get(node) or self._expected.get(node)
        content = put_head(pack_query(self.manifest), self.heads.of(site))
        message = Message(content, node, MessageType.QUERY, ttl=self.attention.seconds, group_id="ready")
        self.attention.push(grid, [message])

    def _read(self, grid: Grid, asked: Message, reply: Message) -> None:
        """Take a node's answer; ask once more if it speaks for another site than the one whose head it got."""
        node = asked.metadata.dst_node_id
        supposed = self._claimed.get(node) or self._expected.get(node)
        try:
            content = content_of(reply)
            readiness = read_readiness(content)
            self._verify(node, readiness)
            check_clock(readiness.site, readiness.clock, asked.metadata.created_at, time.time(), self._tolerance)
            if self.heads.of(readiness.site) and readiness.site != supposed:
                self._claimed[node] = readiness.site
                self._ask(grid, node)
                return
            self.heads.note(readiness.site, find_head(content))
            self._admit(node, readiness)
        except RunError:
            raise
        except CloisterError as error:
            self.problems[supposed or f"node {node}"] = str(error)

    def _verify(self, node: int, readiness: Readiness) -> None:
        signed = readiness.signed_part(self.run, node)
        verify(self.roster.member(readiness.site).verification_key, READINESS, signed, readiness.signature)

    def _admit(self, node: int, readiness: Readiness) -> None:
        site, model = readiness.site, readiness.model
        if self.model is None:
            self.model = model
        elif model != self.model and self.journal.behind(model) is None:
            if not self.journal.unconfirmed:
                self._disagree(site)
            self.model = model
            self.journal.confirm(model)
        self.nodes[site] = node
        self.models[site] = model
        self.layouts[site] = readiness.layout, readiness.size
        self.keys[site], self.latest[site] = (readiness.epoch, readiness.keys), readiness.latest
        self.pairs[site] = set(readiness.pairs)
        self.problems.pop(site, None)

    def _disagree(self, site: str) -> None:
        if not self.journal.started:
            others = ", ".join(self.nodes)
            msg = f"{site} starts from another model than {others}; install the same versions of torch and of the task"
            raise RunError(msg)
        msg = f"{site} has a model that this run never had; move its checkpoint of this run aside and restart its agent"
        raise ProtocolError(msg)
