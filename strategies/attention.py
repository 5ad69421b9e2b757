"""Decide which nodes the server waits for: a silent node is asked again, but not waited for until it answers.

Messages to responsive nodes are sent together, and their replies are awaited together until the deadline. Once a node
has left a message of some kind unanswered, messages of that kind are pushed to it separately, one at a time. Its reply
counts if it arrives before the others are done; if it arrives later, it shows that the node can be waited for again. So
a node that never answers costs one deadline, and a node that was offline, or slow once, is back as soon as it answers.

Everything here goes through Flower's public `Grid` and copes with whatever a grid returns as replies: errors that the
grid made up, replies that nobody asked for, and duplicates.

A deadline begins once no other run is at work at any of the nodes that are asked: `strategies.site_turns`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from flwr.app import MessageType

from strategies.site_turns import SiteTurn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from flwr.app import Message
    from flwr.serverapp import Grid

GRACE = 0.01  # of a deadline: how much longer the server waits for nodes that were silent
POLL_SECONDS = 0.02
_ANY = ""  # stands for every kind of message


@dataclass
class _Exchange:
    """Messages of one kind that were sent together."""

    waited: list[Message] = field(default_factory=list)
    pushed: set[str] = field(default_factory=set)
    began: float = 0.0
    ends: float = 0.0


class Attention:
    """Tracks which nodes answer; nodes are identified by Flower's node ids."""

    def __init__(self, seconds: float, turn: SiteTurn | None = None) -> None:
        self.seconds = seconds  # the round's deadline
        self._turn, self._in_round = turn or SiteTurn(), False
        self._silent: dict[int, set[str]] = {}  # the kinds of messages that a node left unanswered
        self._away: set[int] = set()  # silent nodes that have been offline since
        self._forgiven: dict[int, set[str]] = {}
        self._open: dict[str, Message] = {}  # pushed, not answered yet
        self._until: dict[str, float] = {}  # these, until when, by a clock that nobody sets
        self._late: list[tuple[Message, Message]] = []
        self._exchange = _Exchange()
        self._phases: dict[str, float] = {}

    def phases(self) -> dict[str, float]:
        """Return how many seconds went by until messages of each kind were answered, since this was last called."""
        phases, self._phases = self._phases, {}
        return {kind: round(seconds, 4) for kind, seconds in phases.items()}

    def begin_round(self, nodes: AbstractSet[int], waits: Callable[[set[int]], None]) -> None:
        """Have these nodes for this run alone until `let_go`; if that takes long, call `waits` with those of others."""
        self._turn.take(nodes, waits)
        self._in_round = True

    def release(self, node: int) -> None:
        """Let other runs have a node of which the round needs nothing more."""
        self._turn.release(node)

    def let_go(self) -> None:
        """Let other runs have all nodes."""
        self._in_round = False
        self._turn.leave()

    def reach(self, nodes: AbstractSet[int]) -> set[int]:
        """Return the nodes that no other run has, out of some that are to be queried; the others are next in turn.

        A node is this run's until it has answered, the query has expired, or `let_go`.
        """
        return self._turn.line_up(nodes | self.unanswered(MessageType.QUERY)) & nodes

    def waits_for(self, node: int, kind: str) -> bool:
        """Whether the server waits for a node's reply to a message of this kind."""
        return not self._silent.get(node, set()) & {_ANY, kind}

    def unanswered(self, kind: str) -> set[int]:
        """Return the nodes that have not answered a pushed message of this kind yet."""
        return {
            message.metadata.dst_node_id for message in self._open.values() if message.metadata.message_type == kind
        }

    def see(self, online: AbstractSet[int]) -> None:
        """Note which nodes are online. A node that comes back is waited for again, once."""
        for node in list(self._silent):
            if node not in online:
                self._away.add(node)
            elif node in self._away:
                forgiven = self._forgiven.setdefault(node, set())
                self._silent[node], kinds = self._silent[node] & forgiven, self._silent[node]
                forgiven |= kinds
                self._away.discard(node)
        now = time.monotonic()
        for name, metadata in [(name, message.metadata) for name, message in self._open.items()]:
            if self._until[name] < now:
                del self._open[name]
                self.silent(metadata.dst_node_id, metadata.message_type)

    def silent(self, node: int, kind: str) -> None:
        """Note that a node left a message unanswered."""
        self._silent.setdefault(node, set()).update({_ANY, kind})

    def _spoke(self, node: int, kind: str) -> None:
        for kinds in (self._silent.get(node, set()), self._forgiven.get(node, set())):
            kinds -= {_ANY, kind}

    def push(self, grid: Grid, messages: list[Message]) -> set[str]:
        """Send messages without waiting for replies, which `take` collects later; return their ids."""
        grid.push_messages(messages)
        sent = {message.metadata.message_id: message for message in messages}
        self._open |= sent
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if name in self._open} | {
            name: now + message.metadata.ttl for name, message in sent.items()
        }
        return set(sent)

    def forget_queries(self) -> None:
        """Ignore answers to queries sent so far: what they say may be out of date."""
        self._late = []
        self._open = {
            name: message for name, message in self._open.items() if message.metadata.message_type != MessageType.QUERY
        }

    def take(self, grid: Grid) -> Iterator[tuple[Message, Message]]:
        """Yield pushed messages with the replies that have arrived."""
        late, self._late = self._late, []
        yield from late
        for reply in grid.pull_messages(list(self._open)) if self._open else ():
            message = self._open.get(reply.metadata.reply_to_message_id)
            if message is None or (node := _source(reply, message)) is None:
                continue
            del self._open[message.metadata.message_id]
            if reply.metadata.src_node_id == node:  # otherwise the grid reports that no reply will come
                self._spoke(node, message.metadata.message_type)
            yield message, reply

    def send(self, grid: Grid, messages: Iterable[Message], least: int = 0) -> list[Message]:
        """Begin an exchange: push messages to nodes that were silent, and return the messages to wait for.

        Args:
            grid: the grid to send through.
            messages: messages of one kind, one per node.
            least: if fewer nodes than this are responsive, wait for all.
        """
        messages = list(messages)
        waited = [
            message
            for message in messages
            if self.waits_for(message.metadata.dst_node_id, message.metadata.message_type)
        ]
        pushed = set[str]()
        if len(waited) < least:
            waited = messages
        if waited and not self._in_round:
            self._turn.take({message.metadata.dst_node_id for message in waited})
        if len(waited) < len(messages):
            kind = messages[0].metadata.message_type
            busy = self.unanswered(kind) | {message.metadata.dst_node_id for message in waited}
            pushed = self.push(grid, [message for message in messages if message.metadata.dst_node_id not in busy])
        now = time.monotonic()
        self._exchange = _Exchange(waited, pushed, now, now + self.seconds)
        return waited

    def hear(self, grid: Grid, replies: Iterable[Message], enough: Callable[[], bool]) -> Iterator[tuple[int, Message]]:
        """Yield the replies of an exchange, each with its node, and note which nodes were silent.

        Args:
            grid: the grid that `send` pushed through.
            replies: replies to the messages that `send` returned.
            enough: whether the exchange may end without the nodes that are not waited for.
        """
        exchange, answered = self._exchange, set[int]()
        by_node = {message.metadata.dst_node_id: message for message in exchange.waited}
        by_name = {message.metadata.message_id: message for message in exchange.waited}
        for reply in replies:
            metadata = reply.metadata
            message = by_node.get(metadata.src_node_id) or by_name.get(metadata.reply_to_message_id)
            if message is None or (node := _source(reply, message)) is None:
                continue  # nobody asked for it
            if metadata.src_node_id == node:
                answered.add(node)
                self._spoke(node, message.metadata.message_type)
            yield node, reply
            yield from self._others(grid, exchange)
        for node in by_node.keys() - answered:
            self.silent(node, by_node[node].metadata.message_type)
        yield from self._hear_others(grid, exchange, enough)
        for kind in {message.metadata.message_type for message in exchange.waited}:
            self._phases[kind] = self._phases.get(kind, 0.0) + time.monotonic() - exchange.began

    def _hear_others(
        self, grid: Grid, exchange: _Exchange, enough: Callable[[], bool]
    ) -> Iterator[tuple[int, Message]]:
        grace = min(time.monotonic() + GRACE * self.seconds, exchange.ends)
        while exchange.pushed:
            yield from self._others(grid, exchange)
            if time.monotonic() > (grace if enough() else exchange.ends):
                return
            Event().wait(POLL_SECONDS)

    def _others(self, grid: Grid, exchange: _Exchange) -> Iterator[tuple[int, Message]]:
        """Yield replies from nodes that are not waited for; keep replies to queries for the next gathering."""
        for message, reply in list(self.take(grid)):
            if message.metadata.message_id in exchange.pushed:
                exchange.pushed.discard(message.metadata.message_id)
                yield message.metadata.dst_node_id, reply
            elif message.metadata.message_type == MessageType.QUERY:
                self._late.append((message, reply))

    def ask(
        self, grid: Grid, messages: Iterable[Message], enough: Callable[[], bool] = lambda: True,
        seconds: float | None = None,
    ) -> Iterator[tuple[int, Message]]:  # fmt: skip
        """Send messages, and yield the replies, each with its node: `send`, then `hear`."""
        waited = self.send(grid, messages)
        try:
            yield from self.hear(grid, grid.send_and_receive(waited, timeout=seconds or self.seconds), enough)
        finally:
            if not self._in_round:
                self._turn.leave()


def _source(reply: Message, message: Message) -> int | None:
    """Return the node that was asked if the reply is its own or the grid's error in its place, else None."""
    node = message.metadata.dst_node_id
    return node if reply.metadata.src_node_id == node or reply.has_error() else None
