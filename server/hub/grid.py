"""The `grpc` grid: Flower messages through the hub to long-lived agents."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.app import Error

from privacy.failpoints import failpoint
from transport.flower import GONE, LEFT, reply
from transport.grid import ReplyGrid
from transport.parcel import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from flwr.app import Message

    from privacy.run.roster import Roster
    from server.hub.mailboxes import Mailboxes

_GRACE = 2.0  # seconds after an agent's last call during which it still counts as online


class GrpcGrid(ReplyGrid):
    """Sends through mailboxes that agents pull from."""

    def __init__(
        self,
        run_id: int,
        mailboxes: Mailboxes,
        nodes: AbstractSet[int] | None = None,
        newer: Callable[[], Roster | None] = lambda: None,
    ) -> None:
        """Take the nodes of the run's roster, None for every node that comes; and what tells a newer roster."""
        super().__init__(run_id)
        self._newer = newer
        self._nodes = nodes
        self._mailboxes = mailboxes
        self._sent: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        """Return the sites that are online."""
        online = self._mailboxes.online(_GRACE)
        return sorted(online if self._nodes is None else online & self._nodes)

    def newer_roster(self) -> Roster | None:
        """Return a newer roster, which is offered to the agents before their next message."""
        return self._newer()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids. Withdraw earlier messages that have expired."""
        sent, now = self._sent, time.time()
        self._withdraw(
            {name for name, message in sent.items() if message.metadata.created_at + message.metadata.ttl < now}
        )
        return super().push_messages(messages)

    def _send(self, message: Message) -> None:
        message_id = message.metadata.message_id
        self._sent[message_id] = message
        self._mailboxes.put(message.metadata.dst_node_id, message_id, encode(message))
        failpoint("message-sent")

    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        taken = self._mailboxes.take(waiting, seconds)
        if taken is None:
            return None
        message_id, data = taken
        message = self._sent.pop(message_id)
        if data is None:
            return reply(Error(LEFT, GONE), message)
        return self._read(data, message)

    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        self._mailboxes.withdraw(message_ids)
        for message_id in message_ids:
            self._sent.pop(message_id, None)
