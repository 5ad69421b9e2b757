"""Submit a signed run, look at runs and their events, follow one, stop one, let one go on."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, get_args

from fastapi import Depends, Header, Path, Query, Request, Response
from pydantic import WithJsonSchema
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool

from privacy.run.people import may
from server.api import asking
from server.api.asking import BYTES, Caller, Here, as_bytes, check, check_media_type, described, read_body
from server.api.models import EventsAnswer, NumberedEvent, RunAnswer, RunsAnswer, Status, StopRequest
from server.api.people import SignedIn
from transport.api import MOST_EVENTS, MOST_RUNS

if TYPE_CHECKING:
    from server.store.store import StoredRun

router = asking.router("/v1/runs", "runs")

_LAST_EVENT, _DIGEST = 1 << 53, r"^[0-9a-f]{64}$"
Looking = Annotated[SignedIn, Depends(Caller("look"))]
Signing = Annotated[SignedIn, Depends(Caller("sign"))]
Stopping = Annotated[SignedIn, Depends(Caller("stop"))]
Named = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_.-]{1,80}$", description="the run's digest, or what its digest or name starts with")
]
Digest = Annotated[str, Path(pattern=_DIGEST, description="the run's digest")]
After = Annotated[int, Query(ge=0, le=_LAST_EVENT, description="only events with higher numbers")]
Cursor = Annotated[
    str | None,
    Query(pattern=_DIGEST, description="`next` of the page before"),
    WithJsonSchema({"type": "string", "pattern": _DIGEST}),  # a parameter is there or not; it is never null
]
Standing = Annotated[
    Status | None, Query(description="only runs that stand so"), WithJsonSchema({"enum": list(get_args(Status))})
]


@router.post("", status_code=HTTPStatus.CREATED, openapi_extra={
    "requestBody": {"required": True, **as_bytes("a signed run")}
})  # fmt: skip
async def submit(api: Here, request: Request, found: Signing) -> RunAnswer:
    """Submit a run, as `cloister sign` writes it: it is whose signature it has. The same one again changes nothing."""
    check_media_type(request, BYTES)
    document = await request.body()
    return _shown(await run_in_threadpool(api.runs.submit, document, found.person.name))


@router.get("", dependencies=[Depends(Caller("look"))], response_model=RunsAnswer)
async def list_runs(
    api: Here,
    status: Standing = None,
    before: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=MOST_RUNS)] = 20,
) -> Response:
    """List runs, the newest first."""

    def look() -> RunsAnswer:
        found = api.runs.store.runs(status, before, limit + 1)
        shown = [_shown(run) for run in found[:limit]]
        return RunsAnswer(runs=shown, next=shown[-1].digest if len(found) > limit else None)

    return await api.answers.to(("runs", status, before, limit), look)


@router.get("/{run}", dependencies=[Depends(Caller("look"))], response_model=RunAnswer)
async def look_at_run(api: Here, run: Named) -> Response:
    """Look at a run."""
    return await api.answers.to(("run", run), lambda: _shown(api.runs.store.run(run)))


@router.get(
    "/{run}/manifest",
    dependencies=[Depends(Caller("look"))],
    response_class=Response,
    responses={200: as_bytes("the signed run")},
)
async def fetch_manifest(api: Here, run: Named) -> Response:
    """Fetch a run as it was signed."""
    store = api.runs.store
    document = await run_in_threadpool(lambda: store.document(store.run(run).digest))
    return Response(document, media_type=BYTES)


@router.get("/{run}/events", dependencies=[Depends(Caller("look"))], response_model=EventsAnswer)
async def list_events(
    api: Here, run: Named, after: After = 0, limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100
) -> Response:
    """List a run's events, the oldest first."""

    def look() -> EventsAnswer:
        stored = api.runs.store.run(run)
        found = api.runs.store.events(stored.digest, after, limit + 1)
        shown = [NumberedEvent(number=number, event=event) for number, event in found[:limit]]
        return EventsAnswer(events=shown, next=shown[-1].number if len(found) > limit else None, status=stored.status)

    return await api.answers.to(("events", run, after, limit), look)


_SENT = {  # of each event
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["data"],
}


@router.get("/{run}/follow", response_class=EventSourceResponse, responses={200: {
    "description": "events, each with its number as id; at last `end`, with the run's status and the reason",
    "content": {"text/event-stream": {"schema": _SENT}},
}})  # fmt: skip
async def follow(
    api: Here,
    found: Looking,
    run: Named,
    after: After = 0,
    last_event_id: Annotated[int, Header(ge=0, le=_LAST_EVENT, description="as `after`; the higher counts")] = 0,
) -> EventSourceResponse:
    """Follow a run's events until it ends."""
    stored = await run_in_threadpool(api.runs.store.run, run)
    return api.following.follow(stored.digest, max(after, last_event_id), found)


@router.post("/{run}/stop", openapi_extra=described(StopRequest, required=False))
async def stop(api: Here, request: Request, found: Looking, run: Digest) -> RunAnswer:
    """Stop a run: who signed it may, operators, and coordinators."""
    name = found.person.name
    if not may(found.person.role, "sign"):  # who may sign no runs has none of their own
        check(found, "stop")
    stored = await run_in_threadpool(api.runs.store.run, run)
    if stored.by != name:
        check(found, "stop")
    asked = await read_body(request, StopRequest)
    return _shown(await run_in_threadpool(api.runs.stop, run, name, asked.reason))


@router.post("/{run}/retry")
async def retry(api: Here, found: Stopping, run: Digest) -> RunAnswer:
    """Let a run that failed or was stopped go on where it ended; it may charge sites for further rounds."""
    return _shown(await run_in_threadpool(api.runs.retry, run, found.person.name))


def _shown(run: "StoredRun") -> RunAnswer:
    return RunAnswer(
        digest=run.digest, name=run.name, by=run.by, submitted=run.submitted, status=run.status, reason=run.reason,
        started=run.started, ended=run.ended, rounds=run.rounds, released=run.released, behind=list(run.behind),
    )  # fmt: skip
