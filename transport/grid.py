"""The base class of our grids: messages get an id, replies may stream, and every wait has a deadline.

Subclasses implement how to send a message, and how to wait for the next reply. All pass one contract suite
(tests/transport/test_grids.py), which defines what "a grid" means here.

`send_and_receive` returns a list, as Flower's own grids do: Flower's strategies and workflows read replies twice. A
caller that reads them once wraps the grid, ours or Flower's, in a `StreamingGrid`, and holds one reply at a time.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from threading import Event
from typing import TYPE_CHECKING

from flwr.app import Error
from flwr.serverapp import Grid

from privacy.errors import MalformedError
from transport.flower import MALFORMED, SERVER_NODE, adopt_identity, describe_run, instruction, reply, stamp
from transport.parcel import decode_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from collections.abc import Set as AbstractSet

    from flwr.app import Message, RecordDict
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

    from privacy.run.roster import Roster

    Replies = Generator[Message, None, None]
    Idle = Callable[[AbstractSet[int], float], None]

DEFAULT_TIMEOUT = 3600.0  # seconds, if the caller gives none
_POLL_SECONDS = 0.5  # between two polls of one of Flower's own grids


class ReplyGrid(Grid):
    """A Flower grid of Cloister's own."""

    def __init__(self, run_id: int) -> None:
        self.set_run(describe_run(run_id))
        self.idle: Idle = _do_nothing

    def newer_roster(self) -> Roster | None:
        """Return a roster newer than the last one, which the nodes take before their next message; usually None."""
        return None

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Take a message for delivery."""

    def _expect(self, message_id: str) -> None:
        """Note that the reply to this message, which is sent next, will be awaited, and not just looked for."""

    @abstractmethod
    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        """Return the next reply to one of these messages, or None after `seconds`.

        With 0, return only a reply that is already there; a negative value means that the deadline has passed.
        """

    @abstractmethod
    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        """Forget messages that nobody waits for any more; later replies to them are dropped."""

    @staticmethod
    def _read(data: bytes | bytearray, instruction: Message) -> Message:
        """Read a reply; turn an unreadable one into an error reply, which every strategy can handle."""
        try:
            return decode_reply(data, instruction)
        except MalformedError as error:
            return reply(Error(MALFORMED, str(error)), instruction)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        adopt_identity(run.run_id, SERVER_NODE)
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run; only its id is filled in, unless `set_run` gave more."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
        """Make a message to a node."""
        return instruction(content, kind=message_type, node=dst_node_id, run_id=self._run.run_id, group=group_id,
                           ttl=ttl or DEFAULT_TIMEOUT)  # fmt: skip

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids; if one cannot be sent, withdraw all and raise."""
        return self._push(messages)

    def _push(self, messages: Iterable[Message], *, awaited: bool = False) -> list[str]:
        ids: list[str] = []
        try:
            for message in messages:
                ids.append(stamp(message, run_id=self._run.run_id))
                if awaited:
                    self._expect(ids[-1])
                self._send(message)
        except Exception:
            self._withdraw(set(ids))
            raise
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have already arrived."""
        waiting, replies = set(message_ids), []
        while waiting and (reply := self._next(waiting, 0.0)) is not None:
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return all replies that arrive within `timeout` seconds (an hour if None)."""
        return list(self.stream(messages, timeout=timeout))

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages at once; yield each reply as it arrives, without keeping it."""
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        return self._replies(set(self._push(messages, awaited=True)), deadline)

    def _replies(self, waiting: set[str], deadline: float) -> Replies:
        try:
            while waiting:
                reply = self._next(waiting, deadline - time.monotonic())
                if reply is None:
                    return
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
        finally:
            self._withdraw(waiting)


class StreamingGrid(Grid):
    """Wraps any grid, ours or Flower's, so that `send_and_receive` yields each reply once, as it arrives.

    A strategy that sums updates then holds one of them at a time, not those of all sites.
    """

    def __init__(self, grid: Grid, idle: Idle | None = None) -> None:
        """Take a grid.

        Args:
            grid: the grid.
            idle: called now and then while a grid between processes awaits replies, with the nodes that have not
                answered, and for how many seconds more they are awaited.
        """
        self._grid, self._idle = grid, idle or _do_nothing
        if isinstance(grid, ReplyGrid):
            grid.idle = self._idle

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._grid.run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
        """Make a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online."""
        return self._grid.get_node_ids()

    def newer_roster(self) -> Roster | None:
        """Return a newer roster, if the grid is one of ours and has one."""
        return self._grid.newer_roster() if isinstance(self._grid, ReplyGrid) else None

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what the grid knows about the nodes."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have already arrived."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages at once; yield each reply as it arrives, without keeping it."""
        if isinstance(self._grid, ReplyGrid):
            return self._grid.stream(messages, timeout=timeout)
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        sent = list(messages)  # Flower's grids read it twice
        self._grid.push_messages(sent)
        # A message that Flower could not send gets no reply, like one that nobody answers.
        return self._polled({message.metadata.message_id: message for message in sent}, deadline)

    def _polled(self, sent: dict[str, Message], deadline: float) -> Replies:
        """Poll for one reply at a time: Flower's grids fetch the bodies of all requested replies at once."""
        while sent:
            for message_id in list(sent):
                for pulled in self._grid.pull_messages([message_id]):
                    message = sent.pop(message_id)
                    # Flower's own errors (a lost node, an expired message) come from the server's node.
                    lost = pulled.has_error() and pulled.metadata.src_node_id != message.metadata.dst_node_id
                    yield reply(pulled.error, message) if lost else pulled
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if sent:
                self._idle({message.metadata.dst_node_id for message in sent.values()}, left)
                Event().wait(min(_POLL_SECONDS, left))


def _do_nothing(nodes: AbstractSet[int], seconds: float) -> None:
    """Tell nobody for whom a grid waits."""
