"""Who takes part in a run, as the server sees it: which node speaks for which site, and with which model.

A node is known by what it proves, not by the connection that it came over: its site signs its own name, the
node's number and the model that it has. So the same strategy is safe on every grid.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from threading import Event
from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from privacy.clocks import check_clock
from privacy.errors import CloisterError, ProtocolError, RunError
from privacy.plan import read_plan
from privacy.signing import verify
from transport.contents import Readiness, content_of, pack_query, pack_sum, read_opened, read_readiness
from transport.heads import put_head, read_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.serverapp import Grid

    from privacy.header import UpdateHeader
    from privacy.roster import Roster
    from strategies.heads import Heads
    from strategies.journal import Journal

READINESS = "readiness"
_POLL_SECONDS = 0.1
_QUERY_SECONDS = 30.0


@dataclass
class Membership:
    """The sites that said yes, and why others did not."""

    manifest: bytes
    run: str
    roster: Roster
    journal: Journal
    heads: Heads
    nodes: dict[str, int] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    layouts: dict[str, tuple[str, int]] = field(default_factory=dict)  # layout and size of each site's model
    keys: dict[str, tuple[int, str]] = field(default_factory=dict)  # epoch and fingerprint that each site has
    latest: dict[str, int] = field(default_factory=dict)  # the newest epoch that each site has seen
    model: str | None = None  # the model of the run, once sites agree on one
    tolerance: float = inf  # seconds by which a site's clock and this one may differ

    def gather(self, grid: Grid, minimum: int, seconds: float) -> list[str]:
        """Ask new nodes whether they take part, until enough do or the time is over; return who is there now.

        Raises:
            RunError: if sites start from different models.
        """
        deadline, said = time.monotonic() + seconds, dict[str, str]()
        while True:
            online = set(grid.get_node_ids())
            here = [site for site, node in self.nodes.items() if node in online]
            strangers = online - set(self.nodes.values())
            if strangers:
                self._ask(grid, strangers, min(_QUERY_SECONDS, seconds))
                here = [site for site, node in self.nodes.items() if node in online]
            if len(here) >= minimum or time.monotonic() > deadline:
                return sorted(here)
            if self.problems != said:
                said = dict(self.problems)
                self.journal.record("waiting", sites=sorted(here), minimum=minimum, problems=said)
            # A site that refused may have been mended meanwhile: it is asked again at the next round, not sooner.
            Event().wait(_POLL_SECONDS if not strangers else min(1.0, seconds / 10))

    def site_of(self, node: int) -> str:
        """Return the site that a node speaks for."""
        for site, known in self.nodes.items():
            if known == node:
                return site
        msg = f"node {node} speaks for no site of this run"
        raise ProtocolError(msg)

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
        models = {}
        for reply in grid.send_and_receive(messages, timeout=seconds):
            site = self.site_of(reply.metadata.src_node_id)
            try:
                models[site], _ = read_opened(content_of(reply))
            except CloisterError as error:
                self.problems[site] = str(error)
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
                for reply in grid.send_and_receive([message], timeout=seconds):
                    try:
                        self.models[site], _ = read_opened(content_of(reply))
                    except CloisterError as error:
                        self.problems[site] = str(error)

    def _ask(self, grid: Grid, nodes: set[int], seconds: float) -> None:
        expected = {member.node_id: member.site for member in self.roster.members}  # on other grids, any number
        others = self._query(grid, {node: expected.get(node) for node in nodes}, seconds)
        if others:  # nodes of which we now know whose they are, and so which ledger's head to bring
            self._query(grid, others, seconds)
        self.heads.save()

    def _query(self, grid: Grid, nodes: Mapping[int, str | None], seconds: float) -> dict[int, str | None]:
        """Bring nodes what we have for the sites that they should speak for; return those that speak for others."""
        queries, others, sent = [], dict[int, str | None](), time.time()
        for node, site in nodes.items():
            content = put_head(pack_query(self.manifest), self.heads.of(site))
            queries.append(Message(content, node, MessageType.QUERY, ttl=seconds, group_id="ready"))
        for reply in grid.send_and_receive(queries, timeout=seconds):
            node = reply.metadata.src_node_id
            try:
                content = content_of(reply)
                readiness = read_readiness(content)
                self._verify(node, readiness)
                check_clock(readiness.site, readiness.clock, sent, time.time(), self.tolerance)
                if self.heads.of(readiness.site) and readiness.site != nodes.get(node):
                    others[node] = readiness.site
                    continue
                self.heads.note(readiness.site, read_head(content))
                self._admit(node, readiness)
            except RunError:
                raise
            except CloisterError as error:
                self.problems[nodes.get(node) or f"node {node}"] = str(error)
        return others

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
        self.problems.pop(site, None)

    def _disagree(self, site: str) -> None:
        if not self.journal.started:
            others = ", ".join(self.nodes)
            msg = f"{site} starts from another model than {others}; install the same versions of torch and of the task"
            raise RunError(msg)
        msg = f"{site} has a model that this run never had; move its checkpoint of this run aside and restart its agent"
        raise ProtocolError(msg)
