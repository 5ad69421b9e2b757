"""Follow a run's events as they happen: server-sent events, which end when the run does.

One thread waits for news of all runs, and streams that ask the same of the store share its answer, however many there
are. A stream ends with the session of whoever follows, and when the server stops; a client goes on with
`Last-Event-ID`.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sse_starlette import EventSourceResponse, ServerSentEvent
from typing_extensions import override

from server.api.problems import RefusalError
from transport.api import MOST_EVENTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from server.api.people import People, SignedIn
    from server.api.runs import Runs
    from server.store.store import StoredRun

AT_ONCE, AT_ONCE_OF_ONE = 128, 8
"""How many streams there are, and how many of one person."""

PING_SECONDS = 10
_LOOK_SECONDS = 1.0  # until a stream looks again whether its session holds and the server goes on
_THREADS = 8  # that wait for news, or for the store
ENDED = frozenset({"finished", "failed", "stopped"})


class _Look(NamedTuple):
    """What a look at a run found: how it stands, and its next events with their numbers."""

    run: StoredRun
    events: list[tuple[int, dict[str, Any]]]


class Following:
    """The streams of one API. Its event loop alone uses it."""

    def __init__(self, runs: Runs, people: People) -> None:
        self._runs, self._people = runs, people
        self._streams: dict[str, int] = {}  # by person
        self._looks: dict[tuple[str, int, int], asyncio.Task[_Look]] = {}  # under way, by what is asked
        self._news: asyncio.Task[None] | None = None
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
            stopping, changes = self.stopping, self._runs.store.changes
            look = await self._look(digest, after, changes)
            if not self._people.still_holds(asker.session):
                return
            for number, event in look.events:
                yield ServerSentEvent(json.dumps(event), id=str(number))
                after = number
            if look.events:
                continue
            if look.run.status in ENDED:
                yield ServerSentEvent(json.dumps({"status": look.run.status, "reason": look.run.reason}), event="end")
                return
            if stopping:  # only now: the run may be why the server stops
                return
            await self._wait(changes)

    async def _look(self, digest: str, after: int, changes: int) -> _Look:
        """Look at a run, as the store has it after so many changes; all who ask the same meanwhile share one look."""
        asked, store = (digest, after, changes), self._runs.store

        def look() -> _Look:
            run = store.run(digest)  # before its events: a run that has ended has no more
            return _Look(run, store.events(digest, after, MOST_EVENTS))

        if asked not in self._looks:
            self._looks[asked] = asyncio.ensure_future(run_sync(look, limiter=self._threads))
            self._looks[asked].add_done_callback(lambda task: self._looked(asked, task))
        return await asyncio.shield(self._looks[asked])  # one stream may end while others wait for this

    def _looked(self, asked: tuple[str, int, int], task: asyncio.Task[_Look]) -> None:
        del self._looks[asked]
        if not task.cancelled():
            task.exception()  # whoever asked meets it, unless they have gone

    async def _wait(self, changes: int) -> None:
        """Wait until the store has seen more changes than these, or a second: another process may have written."""
        store = self._runs.store
        if store.changes != changes:
            return
        if self._news is None or self._news.done():
            call = run_sync(store.wait_for_change, changes, _LOOK_SECONDS, limiter=self._threads)
            self._news = asyncio.ensure_future(call)
        await asyncio.wait({self._news}, timeout=_LOOK_SECONDS)

    @property
    def _threads(self) -> CapacityLimiter:
        if self._limiter is None:  # which belongs to the loop
            self._limiter = CapacityLimiter(_THREADS)
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
