"""What our grids share: messages get an id, replies may stream, and no wait is without a deadline.

Subclasses say how a message is sent, and how the next reply is awaited. Both pass one contract suite
(tests/transport/test_grids.py), which is what "a grid" means here.

`send_and_receive` returns a list, as Flower's own grids do: its strategies and workflows read replies twice. Whoever
reads them once puts the grid, ours or Flower's, into a `StreamingGrid`, and holds one reply at a time.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from threading import Event
from typing import TYPE_CHECKING

from flwr.app import Error
from flwr.serverapp import Grid

from privacy.errors import MalformedError
from transport.flower import SERVER_NODE, adopt_identity, describe_run, instruction, reply, stamp
from transport.parcel import decode_reply

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from collections.abc import Set as AbstractSet

    from flwr.app import Message, RecordDict
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

    Replies = Generator[Message, None, None]

DEFAULT_TIMEOUT = 3600.0  # seconds; for callers who name none
_MALFORMED = 102  # code of the error that stands for a reply that could not be read
_POLL_SECONDS = 0.5  # between two questions to one of Flower's own grids


class ReplyGrid(Grid):
    """A Flower grid of ours."""

    def __init__(self, run_id: int) -> None:
        self.set_run(describe_run(run_id))

    @abstractmethod
    def _send(self, message: Message) -> None:
        """Take a message for delivery."""

    @abstractmethod
    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        """Return the next reply to one of these messages, or None after so many seconds.

        Nought asks for what is there already; less than nought says that the deadline has passed.
        """

    @abstractmethod
    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        """Forget messages that nobody waits for any more; replies to them come too late."""

    @staticmethod
    def _read(data: bytes | bytearray, instruction: Message) -> Message:
        """Read a reply; one that cannot be read becomes an error, which every strategy knows to take."""
        try:
            return decode_reply(data, instruction)
        except MalformedError as error:
            return reply(Error(_MALFORMED, str(error)), instruction)

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        adopt_identity(run.run_id, SERVER_NODE)
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run; only its number is filled in, unless `set_run` brought more."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
        """Make a message to a node."""
        return instruction(content, kind=message_type, node=dst_node_id, run_id=self._run.run_id, group=group_id,
                           ttl=ttl or DEFAULT_TIMEOUT)  # fmt: skip

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids; none, if one of them cannot be sent."""
        ids: list[str] = []
        try:
            for message in messages:
                ids.append(stamp(message))
                self._send(message)
        except Exception:
            self._withdraw(set(ids))
            raise
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there already."""
        waiting, replies = set(message_ids), []
        while waiting and (found := self._next(waiting, 0.0)) is not None:
            waiting.discard(found.metadata.reply_to_message_id)
            replies.append(found)
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return all replies that came before `timeout` seconds had passed (an hour, if None)."""
        return list(self.stream(messages, timeout=timeout))

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages now; yield each reply as it arrives, and keep none."""
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        return self._replies(set(self.push_messages(messages)), deadline)

    def _replies(self, waiting: set[str], deadline: float) -> Replies:
        try:
            while waiting:
                found = self._next(waiting, deadline - time.monotonic())
                if found is None:
                    return
                waiting.discard(found.metadata.reply_to_message_id)
                yield found
        finally:
            self._withdraw(waiting)


class StreamingGrid(Grid):
    """Any grid, ours or Flower's, for one who reads each reply once: `send_and_receive` yields them as they arrive.

    A strategy that adds updates up holds one of them at a time, and not those of all sites.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

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

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return what the grid knows of them."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there already."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Replies:
        """Send messages now; yield each reply as it arrives, and keep none."""
        if isinstance(self._grid, ReplyGrid):
            return self._grid.stream(messages, timeout=timeout)
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        sent = list(messages)  # Flower's grids read it twice
        self._grid.push_messages(sent)
        # A message that Flower could not send has no reply, and is waited for like one that nobody answers.
        return self._polled({message.metadata.message_id: message for message in sent}, deadline)

    def _polled(self, sent: dict[str, Message], deadline: float) -> Replies:
        """Ask for one reply at a time: Flower's grids fetch the bodies of all that they are asked for."""
        while sent:
            for message_id in list(sent):
                for found in self._grid.pull_messages([message_id]):
                    message = sent.pop(message_id)
                    # Flower's own errors (a lost node, an expired message) come from the server's node.
                    lost = found.has_error() and found.metadata.src_node_id != message.metadata.dst_node_id
                    yield reply(found.error, message) if lost else found
            left = deadline - time.monotonic()
            if left <= 0:
                return
            if sent:
                Event().wait(min(_POLL_SECONDS, left))
