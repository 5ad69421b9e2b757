"""What our grids share: messages get an id, replies are yielded as they arrive, and no wait is without a deadline.

Subclasses say how a message is sent, and how the next reply is awaited. Both pass one contract suite
(tests/transport/test_grids.py), which is what "a grid" means here.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from flwr.app import Error
from flwr.serverapp import Grid

from privacy.errors import MalformedError
from transport.flower import SERVER_NODE, adopt_identity, instruction, reply, stamp
from transport.parcel import decode_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from flwr.app import Message, RecordDict
    from flwr.supercore.run import Run

DEFAULT_TIMEOUT = 3600.0  # seconds; for callers who name none
_MALFORMED = 102  # code of the error that stands for a reply that could not be read


class ReplyGrid(Grid):
    """A Flower grid that streams: `send_and_receive` returns an iterator which yields each reply as it arrives."""

    def __init__(self, run_id: int) -> None:
        adopt_identity(run_id, SERVER_NODE)
        self._run_id = run_id
        self._run: Run | None = None

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
        """Set the run (Flower's engines call it; ours name the run when the grid is made)."""
        self._run, self._run_id = run, run.run_id

    @property
    def run(self) -> Run:
        """Flower's description of the run, if it gave one."""
        if self._run is None:
            msg = f"this grid was made for run {self._run_id} without Flower's description of it"
            raise RuntimeError(msg)
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
                       ttl: float | None = None) -> Message:  # fmt: skip
        """Make a message to a node."""
        return instruction(content, kind=message_type, node=dst_node_id, run_id=self._run_id, group=group_id,
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

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages now; yield their replies as they arrive, until all came or `timeout` seconds passed."""
        deadline = time.monotonic() + (DEFAULT_TIMEOUT if timeout is None else timeout)
        return self._replies(set(self.push_messages(messages)), deadline)

    def _replies(self, waiting: set[str], deadline: float) -> Iterator[Message]:
        try:
            while waiting:
                found = self._next(waiting, deadline - time.monotonic())
                if found is None:
                    return
                waiting.discard(found.metadata.reply_to_message_id)
                yield found
        finally:
            self._withdraw(waiting)
