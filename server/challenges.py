"""Challenges to sign in with: fresh, each answered once and soon, by the name that asked for it.

An outstanding challenge takes no memory: it carries its own time and a code that only this process can make, as a SYN
cookie does. What is kept is kept only of those who proved who they are, and is bounded for each: the challenges that
they answered lately. Threads may share `issue`, and nothing else.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections import defaultdict, deque
from hashlib import sha256
from typing import TYPE_CHECKING

from privacy.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

SECONDS = 60.0
ANSWERS = 64
"""How often somebody may sign in while a challenge is valid."""

_ISSUED = struct.Struct(">d")
_RANDOM_BYTES = 16
_CODE_BYTES = sha256().digest_size
BYTES = _ISSUED.size + _RANDOM_BYTES + _CODE_BYTES


class Challenges:
    """Issues challenges, and recognises them."""

    def __init__(self, now: Callable[[], float], seconds: float = SECONDS) -> None:
        """Take a clock that never goes back, and for how long a challenge is valid."""
        self._now, self.seconds, self._secret = now, seconds, secrets.token_bytes(32)
        self._answered = defaultdict[str, deque[tuple[float, bytes]]](deque)

    def issue(self, name: str) -> bytes:
        """Return a fresh challenge for whoever says to be `name`."""
        opening = _ISSUED.pack(self._now()) + secrets.token_bytes(_RANDOM_BYTES)
        return opening + self._code(opening, name)

    def issued(self, challenge: bytes, name: str) -> float:
        """Return when a challenge was issued.

        Raises:
            ProtocolError: if it was not issued here to this name, or is too old.
        """
        opening, code = challenge[:-_CODE_BYTES], challenge[-_CODE_BYTES:]
        if len(challenge) == BYTES and hmac.compare_digest(code, self._code(opening, name)):
            (issued,) = _ISSUED.unpack_from(opening)
            if self._now() <= issued + self.seconds:
                return float(issued)
        msg = (
            f"{name} answers a challenge of another server or name, or one that is older than {self.seconds:g} s; ask "
            "for a new one"
        )
        raise ProtocolError(msg)

    def use(self, challenge: bytes, name: str) -> None:
        """Note that `name`, who has proved to be it, answered a challenge.

        Raises:
            ProtocolError: if it was answered before, or too many were lately.
        """
        answered, now = self._answered[name], self._now()
        while answered and answered[0][0] < now - self.seconds:
            answered.popleft()
        if any(challenge == used for _, used in answered):
            msg = f"this challenge of {name} was answered before, so this may be a replay; ask for a new one"
            raise ProtocolError(msg)
        if len(answered) >= ANSWERS:
            msg = f"{name} signed in {ANSWERS} times within {self.seconds:g} s; wait as long"
            raise ProtocolError(msg)
        answered.append((now, challenge))

    def keep(self, names: Collection[str]) -> None:
        """Forget what others answered."""
        for name in self._answered.keys() - set(names):
            del self._answered[name]

    @property
    def kept(self) -> int:
        """How many answers are remembered."""
        return sum(map(len, self._answered.values()))

    def _code(self, opening: bytes, name: str) -> bytes:
        return hmac.digest(self._secret, opening + name.encode(), sha256)
