"""The `grpc` grid: Flower messages through the hub to long-lived agents."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.app import Error

from privacy.failpoints import failpoint
from strategies.interruption import Interruption
from transport.flower import GONE, LEFT, reply
from transport.grid import ReplyGrid
from transport.parcel import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Set as AbstractSet

    from flwr.app import Message

    from privacy.run.roster import Roster
    from server.hub.mailboxes import Mailboxes

GRACE = 2.0
"""Seconds after an agent's last call during which it still counts as online."""


class GrpcGrid(ReplyGrid):
    """Sends one run's messages through mailboxes that agents pull from, and that other runs use, too."""

    def __init__(
        self,
        run_id: int,
        mailboxes: Mailboxes,
        nodes: AbstractSet[int] | None = None,
        newer: Callable[[], Roster | None] = lambda: None,
        interruption: Interruption | None = None,
    ) -> None:
        """Take what a run needs to know.

        Args:
            run_id: Flower's number for the run.
            mailboxes: where messages wait for sites.
            nodes: the run's nodes; None for every node that comes.
            newer: returns a newer roster, if there is one.
            interruption: what may ask the run to end.
        """
        super().__init__(run_id)
        self._newer = newer
        self._nodes = nodes
        self._mailboxes = mailboxes
        self._interruption = interruption or Interruption()
        self._sent: dict[str, Message] = {}
        self._until: dict[str, float] = {}  # when nobody waits for an answer any more, by a clock that nobody sets

    def get_node_ids(self) -> Iterable[int]:
        """Return the sites that are online."""
        self._interruption.check()
        online = self._mailboxes.online(GRACE)
        return sorted(online if self._nodes is None else online & self._nodes)

    def newer_roster(self) -> Roster | None:
        """Return a newer roster, which is offered to the agents before their next message."""
        return self._newer()

    def close(self) -> None:
        """Withdraw every message that no site has answered: the run has ended."""
        self._withdraw(set(self._sent))

    def _push(self, messages: Iterable[Message], *, awaited: bool = False) -> list[str]:
        self._interruption.check()
        now = time.monotonic()
        self._withdraw({name for name, until in self._until.items() if until < now})
        return super()._push(messages, awaited=awaited)

    def _expect(self, message_id: str) -> None:
        self._mailboxes.expect(message_id)

    def _send(self, message: Message) -> None:
        message_id = message.metadata.message_id
        self._sent[message_id] = message
        self._until[message_id] = time.monotonic() + message.metadata.ttl
        self._mailboxes.put(message.metadata.dst_node_id, message_id, encode(message))
        failpoint("message-sent")

    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        deadline = time.monotonic() + seconds
        while True:
            self._interruption.check()
            left = deadline - time.monotonic()
            taken = self._mailboxes.take(waiting, min(left, Interruption.SECONDS))
            if seconds > 0:
                others = waiting - {taken[0]} if taken else waiting
                self.idle({self._sent[name].metadata.dst_node_id for name in others if name in self._sent}, left)
            if taken is not None:
                break
            if left <= Interruption.SECONDS:
                return None
        message_id, data = taken
        message = self._sent.pop(message_id)
        del self._until[message_id]
        if data is None:
            return reply(Error(LEFT, GONE), message)
        return self._read(data, message)

    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        self._mailboxes.withdraw(message_ids)
        for message_id in message_ids:
            self._sent.pop(message_id, None)
            self._until.pop(message_id, None)
