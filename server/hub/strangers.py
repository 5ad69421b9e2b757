"""Read what somebody sends who is not known yet: one short message, at once, and of few callers at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 5.0
AT_ONCE = 64
"""Callers that are waited for; if more come, whoever has kept us waiting longest is sent away."""


class Strangers:
    """Reads messages of callers that nobody knows yet. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting = deque[asyncio.Timeout]()

    async def message(self, messages: AsyncIterator[bytes], largest: int) -> bytes:
        """Return a caller's first message.

        Raises:
            MalformedError: if it has more than `largest` bytes, or there is none.
            TimeoutError: if it does not come at once, or many other callers came since.
        """
        async with asyncio.timeout(SECONDS) as ends:
            self._waiting.append(ends)
            if len(self._waiting) > AT_ONCE:
                self._waiting.popleft().reschedule(0.0)
            try:
                message = await anext(aiter(messages), b"")
            finally:
                if ends in self._waiting:
                    self._waiting.remove(ends)
        if not 0 < len(message) <= largest:
            msg = f"a message of {len(message):,} bytes came where 1 to {largest:,} may come; use the same version"
            raise MalformedError(msg)
        return message
