"""Answers that are kept as they were sent, for as long as the store has not changed: many look at the same few runs.

Reading the store and describing what it has costs several times what all else of a request does, and takes it from the
rounds that go on in this process. Only who leads writes runs, and only who leads serves the API; should another process
write all the same, its change shows within a second.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Response
from starlette.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from pydantic import BaseModel

    from server.store.store import Store

JSON = "application/json"

_SECONDS = 1.0
_MOST, _LARGEST = 256, 64 << 10  # answers; bytes of one


@dataclass(frozen=True)
class _Kept:
    changes: int  # of the store, when it was read
    until: float  # by the monotonic clock
    body: bytes


class Answers:
    """The answers of one API to looks at its store, whoever looks. Its event loop alone uses it."""

    def __init__(self, store: Store) -> None:
        self._store, self._kept = store, OrderedDict[object, _Kept]()

    async def to(self, question: Hashable, look: Callable[[], BaseModel]) -> Response:
        """Return the answer to a question, which `look` finds in the store, in a thread."""
        changes, now = self._store.changes, time.monotonic()
        kept = self._kept.get(question)
        if kept is None or kept.changes != changes or kept.until < now:
            body = await run_in_threadpool(lambda: look().model_dump_json().encode())
            if len(body) > _LARGEST:
                return Response(body, media_type=JSON)
            kept = self._kept[question] = _Kept(changes, now + _SECONDS, body)
            while len(self._kept) > _MOST:
                self._kept.popitem(last=False)
        return Response(kept.body, media_type=JSON)
