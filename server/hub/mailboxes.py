"""Queue messages for sites, and their replies. All methods are thread-safe.

A message stays in its site's mailbox until it is answered or withdrawn: an agent that crashed and reconnects gets it
again. A reply is accepted once; the same bytes sent again get the same receipt, other bytes are refused. A message to
a site that leaves is answered here, by None, so that nobody waits for it. A small reply takes no place and is always
kept: there is one for each message that a run sent.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import sha256
from threading import Condition
from typing import TYPE_CHECKING

from privacy.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

_OTHERS = (
    2  # replies held that nobody awaits, while others are awaited: fewer than the bodies that the hub takes at a time
)
SMALL = 64 << 10
"""Bytes of a reply, up to which it takes no place: answers whether a site takes part, signatures, models' digests."""

_REMEMBERED = 4096  # answered messages whose receipts are still available


@dataclass
class _Box:
    waiting: OrderedDict[str, tuple[bytes, ...]] = field(default_factory=OrderedDict)
    wakers: set[Callable[[], None]] = field(default_factory=set)
    seen: float = 0.0

    def wake(self) -> None:
        """Wake the site's streams."""
        for wake in self.wakers:
            wake()


class Mailboxes:
    """One mailbox per site."""

    def __init__(self, nodes: AbstractSet[int]) -> None:
        self._changed = Condition()
        self._boxes = {node: _Box() for node in nodes}
        self._left = set[int]()  # sites that were members
        self._replies: dict[str, tuple[bytes | bytearray | None, Callable[[], None]]] = {}
        self._answered: OrderedDict[str, bytes] = OrderedDict()
        self._awaited = set[str]()  # messages whose replies some run awaits

    def admit(self, nodes: AbstractSet[int]) -> None:
        """Have a mailbox for these sites, and nothing in any other; what was in it has None as its reply."""
        with self._changed:
            for node in nodes:
                self._boxes.setdefault(node, _Box())
            self._left = self._boxes.keys() - nodes
            for node in self._left:
                box = self._boxes[node]
                self._replies |= dict.fromkeys(box.waiting, (None, _nothing))
                box.waiting.clear()
                box.seen = 0.0
            self._changed.notify_all()

    def expect(self, message_id: str) -> None:
        """Hold the reply to this message until it is taken, or the message withdrawn, whatever other runs await."""
        with self._changed:
            self._awaited.add(message_id)

    def put(self, node: int, message_id: str, parts: tuple[bytes, ...]) -> None:
        """Leave a message for a site; one that has left is answered at once.

        Raises:
            ProtocolError: if there never was such a site.
        """
        with self._changed:
            if node not in self._boxes:
                msg = f"node {node} is not in the roster; only members get messages"
                raise ProtocolError(msg)
            if node in self._left:
                self._replies[message_id] = None, _nothing
                return
            box = self._boxes[node]
            box.waiting[message_id] = parts
            box.wake()

    def peek(self, node: int) -> tuple[str, tuple[bytes, ...]] | None:
        """Return the id and the parts of the oldest message that this site has not answered."""
        with self._changed:
            return next(iter(self._boxes[node].waiting.items()), None)

    def watch(self, node: int, wake: Callable[[], None]) -> None:
        """Call `wake` whenever the site's oldest message may be another one; the site is online from now on."""
        with self._changed:
            self._boxes[node].wakers.add(wake)

    def unwatch(self, node: int, wake: Callable[[], None]) -> None:
        """Stop calling `wake`."""
        with self._changed:
            self._boxes[node].wakers.discard(wake)
            self._boxes[node].seen = time.monotonic()

    def online(self, grace: float) -> set[int]:
        """Return the nodes that wait for messages, or did within the last `grace` seconds."""
        now = time.monotonic()
        with self._changed:
            return {node for node, box in self._boxes.items() if box.wakers or (now - box.seen < grace and box.seen)}

    def expects(self, node: int, message_id: str) -> bool:
        """Whether this site's reply to this message would be accepted, or has been."""
        with self._changed:
            return message_id in self._boxes[node].waiting or message_id in self._answered

    def answer(self, node: int, message_id: str, data: bytes | bytearray, free: Callable[[], None]) -> bool:
        """Accept a reply; return whether it was expected. Call `free` once the reply is no longer held here.

        Raises:
            ProtocolError: if a different reply to the same message was accepted before.
        """
        digest = sha256(data).digest()
        with self._changed:
            if message_id in self._answered or message_id not in self._boxes[node].waiting:
                free()
            if message_id in self._answered:
                if self._answered[message_id] != digest:
                    msg = "another reply to this message was already accepted; this one was refused"
                    raise ProtocolError(msg)
                return True
            self._boxes[node].seen = time.monotonic()  # it is about to ask for more
            if self._boxes[node].waiting.pop(message_id, None) is None:
                return False
            self._answered[message_id] = digest
            if len(self._answered) > _REMEMBERED:
                self._answered.popitem(last=False)
            if len(data) <= SMALL:
                free()
                free = _nothing
            self._replies[message_id] = data, free
            self._changed.notify_all()
            self._boxes[node].wake()
            return True

    def take(self, message_ids: AbstractSet[str], seconds: float) -> tuple[str, bytes | bytearray | None] | None:
        """Wait up to `seconds` for a reply to any of these messages; return its message's id and the reply, or None.

        The reply is None if the site has left, and none will come.
        Meanwhile only a few large replies that nobody awaits are held, so that awaited replies find room. The rest are
        replaced with empty ones, as a record that they came.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                message_id = next((reply for reply in self._replies if reply in message_ids), None)
                if message_id is not None:
                    data, free = self._replies.pop(message_id)
                    self._awaited.discard(message_id)
                    free()
                    return message_id, data
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                awaited = self._awaited | message_ids
                others = [name for name, (data, _) in self._replies.items()
                          if name not in awaited and data is not None and len(data) > SMALL]  # fmt: skip
                for other in others[_OTHERS:]:
                    self._replies[other][1]()
                    self._replies[other] = b"", _nothing
                self._changed.wait(left)

    def withdraw(self, message_ids: AbstractSet[str]) -> None:
        """Forget messages that nobody waits for any more."""
        with self._changed:
            self._awaited -= message_ids
            for message_id in message_ids:
                if message_id in self._replies:
                    self._replies.pop(message_id)[1]()
                for box in self._boxes.values():
                    if box.waiting.pop(message_id, None) is not None:
                        box.wake()


def _nothing() -> None:
    """Do nothing: an emptied reply holds no slot."""
