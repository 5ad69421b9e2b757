"""Follow a run's events as they happen: server-sent events, which end when the run does.

One task for each run that is followed waits for its events, however many people follow it. A stream ends with the
session of whoever follows, and when the server stops; a client goes on with `Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sse_starlette import EventSourceResponse, ServerSentEvent
from typing_extensions import override

from server.api.problems import RefusalError
from transport.api import MOST_EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from starlette.types import Receive, Scope, Send

    from server.api.people import People, SignedIn
    from server.api.runs import Runs

AT_ONCE, AT_ONCE_OF_ONE = 128, 8
"""How many streams there are, and how many of one person."""

PING_SECONDS = 10
_LOOK_SECONDS = 1.0  # until a stream looks again whether its session holds and the server goes on
_WAITERS = 8  # threads that wait for events
ENDED = frozenset({"finished", "failed", "stopped"})


class Following:
    """The streams of one API. Its event loop alone uses it."""

    def __init__(self, runs: Runs, people: People) -> None:
        self._runs, self._people = runs, people
        self._streams: dict[str, int] = {}  # by person
        self._waiting: dict[str, asyncio.Task[bool]] = {}  # by run
        self._limiter: CapacityLimiter | None = None
        self.stopping = False

    def follow(self, digest: str, after: int, asker: SignedIn) -> EventSourceResponse:
        """Return a stream of a run's events with higher numbers than `after`.

        Raises:
            RefusalError: if there are too many.
        """
        mine = self._streams.get(asker.person.name, 0)
        if mine >= AT_ONCE_OF_ONE or sum(self._streams.values()) >= AT_ONCE:
            detail = f"{asker.person.name} follows {mine} runs, and others follow some too; end one of these first"
            raise RefusalError(HTTPStatus.TOO_MANY_REQUESTS, detail, {"Retry-After": "30"})
        return _Counted(self._stream(digest, after, asker), self._streams, asker.person.name)

    async def _stream(self, digest: str, after: int, asker: SignedIn) -> AsyncIterator[ServerSentEvent]:
        while True:
            stopping = self.stopping
            holds, run, events = await run_sync(self._look, digest, after, asker, limiter=self._threads)
            if not holds:
                return
            for number, event in events:
                yield ServerSentEvent(json.dumps(event), id=str(number))
                after = number
            if events:
                continue
            if run.status in ENDED:
                yield ServerSentEvent(json.dumps({"status": run.status, "reason": run.reason}), event="end")
                return
            if stopping:  # only now: the run may be why the server stops
                return
            await self._wait(digest, after)

    def _look(self, digest: str, after: int, asker: SignedIn) -> tuple[bool, Any, list[tuple[int, dict[str, Any]]]]:
        holds, store = self._people.still_holds(asker.session), self._runs.store
        run = store.run(digest)  # before its events: a run that has ended has no more
        return holds, run, store.events(digest, after, MOST_EVENTS) if holds else []

    async def _wait(self, digest: str, after: int) -> None:
        """Wait for events, or a second."""
        waiting = self._waiting.get(digest)
        if waiting is None or waiting.done():
            wait = self._runs.store.wait_for_events
            call = run_sync(wait, digest, after, _LOOK_SECONDS, limiter=self._threads)
            waiting = self._waiting[digest] = asyncio.ensure_future(call)
            waiting.add_done_callback(lambda task: self._waited(digest, task))
        await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)

    def _waited(self, digest: str, task: asyncio.Task[bool]) -> None:
        self._waiting.pop(digest, None)
        if not task.cancelled():
            task.exception()  # whoever follows looks at the store next, and meets it there

    @property
    def _threads(self) -> CapacityLimiter:
        if self._limiter is None:  # which belongs to the loop
            self._limiter = CapacityLimiter(_WAITERS)
        return self._limiter


class _Counted(EventSourceResponse):
    """A stream that counts from when it is allowed, not from its first event: many may be asked for at once."""

    def __init__(self, stream: AsyncIterator[ServerSentEvent], counts: dict[str, int], name: str) -> None:
        super().__init__(stream, ping=PING_SECONDS, headers={"X-Accel-Buffering": "no"})
        self._counts, self._name = counts, name
        counts[name] = counts.get(name, 0) + 1

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._counts[self._name] -= 1
            if not self._counts[self._name]:
                del self._counts[self._name]
