"""Runs over the API: submitted, listed page by page, followed until they end, stopped, tried again."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from cloister.event_stream import EventStream
from privacy.crypto.signing import SignedDocument
from privacy.run.manifest import KIND, open_run
from server.api import following
from server.api.following import AT_ONCE_OF_ONE
from tests.server.api.consortia import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.server.api.consortia import Consortium, Server

BYTES = {"Content-Type": "application/octet-stream"}
SECONDS = 30.0


@pytest.fixture(scope="module")
def rosa(shared_server: Server) -> Iterator[httpx.Client]:
    """A researcher who is signed in."""
    with shared_server.http(shared_server.token("rosa")) as http:
        yield http


def record(server: Server, digest: str, *events: str) -> None:
    for event in events:
        server.store.record(digest).append({"event": event, "time": 1.0})


def test_a_signed_run_is_submitted_once_and_fetched_as_it_was_signed(shared_server: Server, rosa: httpx.Client) -> None:
    document = shared_server.consortium.sign("first")
    submitted = rosa.post("/v1/runs", content=document, headers=BYTES)
    assert submitted.status_code == 201
    run = submitted.json()
    assert run["digest"] == open_run(document, shared_server.queue.roster()).digest
    assert (run["name"], run["by"], run["status"]) == ("first", "rosa", "waiting")
    assert rosa.post("/v1/runs", content=document, headers=BYTES).json() == run
    for name in (run["digest"], run["digest"][:10], "first"):
        assert rosa.get(f"/v1/runs/{name}").json() == run
        assert rosa.get(f"/v1/runs/{name}/manifest").content == document


def test_a_run_is_whose_signature_it_has_whoever_submits_it(shared_server: Server, rosa: httpx.Client) -> None:
    consortium = shared_server.consortium
    mine, squatted = consortium.sign("carried"), consortium.sign("squatted")
    theirs = SignedDocument.make(consortium.key("founder"), KIND, squatted.partition(b"\n")[2]).to_bytes()
    with shared_server.http(shared_server.token("founder")) as founder:
        carried = founder.post("/v1/runs", content=mine, headers=BYTES).json()
        assert carried["by"] == "rosa"
        assert rosa.post("/v1/runs", content=mine, headers=BYTES).json() == carried
        taken = founder.post("/v1/runs", content=theirs, headers=BYTES).json()
    assert (taken["by"], taken["digest"]) == ("founder", open_run(squatted, shared_server.queue.roster()).digest)
    refused = rosa.post("/v1/runs", content=squatted, headers=BYTES)
    assert refused.status_code == 409
    assert "founder signed it, and it is theirs; rosa signs the run's file again" in refused.json()["detail"]
    again = rosa.post("/v1/runs", content=consortium.sign("squatted"), headers=BYTES).json()
    assert (again["by"], again["status"], again["digest"] == taken["digest"]) == ("rosa", "waiting", False)
    assert rosa.post(f"/v1/runs/{taken['digest']}/stop").status_code == 403
    assert rosa.post(f"/v1/runs/{carried['digest']}/stop").json()["status"] == "stopped"


def test_a_run_that_nobody_signed_or_whose_signer_may_not_is_refused(shared_server: Server, rosa: httpx.Client) -> None:
    good = shared_server.consortium.sign("refused")
    cases = {
        good.replace(b'"refused"', b'"other"'): (422, "nobody in roster"),
        shared_server.consortium.sign("refused", "otto"): (422, "only coordinators and researchers may sign"),
        b"no run": (400, "not a signed Cloister manifest"),
        b"": (400, "not a signed Cloister manifest"),
    }
    before = len(shared_server.store.runs())
    for document, (status, why) in cases.items():
        refused = rosa.post("/v1/runs", content=document, headers=BYTES)
        assert (refused.status_code, why in refused.json()["detail"]) == (status, True), refused.text
    assert rosa.post("/v1/runs", content=good, headers={"Content-Type": "text/html"}).status_code == 415
    assert len(shared_server.store.runs()) == before


def test_runs_and_events_are_listed_page_by_page(shared_server: Server, rosa: httpx.Client) -> None:
    digests = []
    for number in range(5):
        digest = shared_server.queue.submit(shared_server.consortium.sign(f"page-{number}"), "rosa").digest
        shared_server.store.mark(digest, "stopped")
        digests.append(digest)
    found, cursor = list[str](), ""
    while True:
        page = rosa.get("/v1/runs", params={"limit": 2, "status": "stopped", **({"before": cursor} if cursor else {})})
        found += [run["digest"] for run in page.json()["runs"]]
        if (cursor := page.json()["next"]) is None:
            break
    assert found[:5] == digests[::-1]

    record(shared_server, digests[0], *"abcde")
    numbers, after = list[int](), cast("int | None", 0)
    while after is not None:
        page = rosa.get(f"/v1/runs/{digests[0]}/events", params={"limit": 2, "after": after})
        numbers += [each["number"] for each in page.json()["events"]]
        after = page.json()["next"]
    assert numbers == [1, 2, 3, 4, 5]


def test_unknown_or_impossible_parameters_are_refused(shared_server: Server, rosa: httpx.Client) -> None:
    digest = shared_server.store.runs(limit=1)[0].digest
    for path, status in {
        "/v1/runs?staus=failed": 422,
        "/v1/runs?limit=0": 422,
        "/v1/runs?limit=ten": 422,
        "/v1/runs?before=xyz": 422,
        f"/v1/runs/{digest}/events?after=-1": 422,
        f"/v1/runs/{digest}?x=": 422,
        "/v1/runs/nothing": 404,
        "/v1/runs/%2e%2e": 404,
        "/v1/runs/a%00b": 422,
        "/v1/runs/": 404,
        "/v2/runs": 404,
    }.items():
        answer = rosa.get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), path
    assert "'staus'; known here: before, limit, status" in rosa.get("/v1/runs?staus=failed").json()["detail"]


def test_a_run_that_has_ended_is_not_stopped_and_one_that_has_finished_is_not_tried_again(
    shared_server: Server, rosa: httpx.Client
) -> None:
    digest = shared_server.queue.submit(shared_server.consortium.sign("conflict"), "rosa").digest
    with shared_server.http(shared_server.token("otto")) as otto:
        shared_server.store.mark(digest, "finished")
        assert otto.post(f"/v1/runs/{digest}/retry").status_code == 409
        shared_server.store.mark(digest, "failed", "the disk is full")
        refused = otto.post(f"/v1/runs/{digest}/stop")
        assert (refused.status_code, refused.json()["detail"].split(",")[0]) == (409, "conflict has already failed")
        assert otto.post(f"/v1/runs/{digest}/retry").json()["status"] == "waiting"
    assert rosa.post(f"/v1/runs/{digest}/stop", json={"reason": "x", "force": True}).status_code == 422
    assert rosa.post(f"/v1/runs/{digest}/stop", json={"reason": "x" * 301}).status_code == 422


# --- Follow ---------------------------------------------------------------------------------------------------------


def follow(http: httpx.Client, digest: str, headers: dict[str, str] | None = None, after: int = 0) -> Iterator[Any]:
    stream = EventStream()
    with http.stream("GET", f"/v1/runs/{digest}/follow", params={"after": after}, headers=headers or {}) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for part in answer.iter_raw():
            for sent in stream.feed(part):
                yield sent.number, sent.kind, json.loads(sent.data)


def test_events_are_followed_as_they_happen_and_to_the_end_of_the_run(
    shared_server: Server, rosa: httpx.Client
) -> None:
    server = shared_server
    digest = server.queue.submit(server.consortium.sign("followed"), "rosa").digest
    server.store.mark(digest, "running")
    record(server, digest, "started")
    events = follow(rosa, digest)
    assert next(events) == ("1", "message", {"event": "started", "time": 1.0})
    record(server, digest, "round")
    assert next(events)[2]["event"] == "round"
    record(server, digest, "finished")
    server.store.mark(digest, "finished")
    assert [(number, kind) for number, kind, _ in events] == [("3", "message"), ("3", "end")]
    assert [number for number, *_ in follow(rosa, digest, {"Last-Event-ID": "1"})] == ["2", "3", "3"]
    assert [number for number, *_ in follow(rosa, digest, after=2)] == ["3", "3"]
    assert rosa.get(f"/v1/runs/{digest}/follow", headers={"Last-Event-ID": "x"}).status_code == 422


def test_many_people_follow_one_run_and_nobody_follows_too_many(shared_server: Server) -> None:
    server = shared_server
    digest = server.queue.submit(server.consortium.sign("watched"), "rosa").digest
    server.store.mark(digest, "running")
    record(server, digest, "started")
    seen, clients = list[list[str]](), []

    def watch(http: httpx.Client, events: list[str]) -> None:
        events += [kind for _, kind, _ in follow(http, digest)]

    token = server.token("otto")
    with server.http(token) as http:
        for _ in range(AT_ONCE_OF_ONE):
            seen.append([])
            clients.append(threading.Thread(target=watch, args=(http, seen[-1])))
            clients[-1].start()
        wait_until(lambda: server.port._following._streams == {"otto": AT_ONCE_OF_ONE})  # those of earlier tests end
        refused = http.get(f"/v1/runs/{digest}/follow")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "30")
        server.store.mark(digest, "stopped", "enough")
        for client in clients:
            client.join(SECONDS)
    assert seen == [["message", "end"]] * AT_ONCE_OF_ONE
    wait_until(lambda: not server.port._following._streams)


def test_each_event_comes_at_once_however_many_runs_are_followed(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LOOK_SECONDS", 4 * SECONDS)  # for whoever waits in vain
    server, runs, followers = shared_server, [], ("otto", "aude")
    wait_until(lambda: not server.port._following._streams)  # those of earlier tests end
    for number in range(2 * AT_ONCE_OF_ONE):
        runs.append(server.queue.submit(server.consortium.sign(f"many-{number}"), "rosa").digest)
        record(server, runs[-1], "started")
    with ExitStack() as clients:
        streams: list[Iterator[tuple[str, str, dict[str, Any]]]] = []
        for number, run in enumerate(runs):
            http = clients.enter_context(server.http(server.token(followers[number % 2])))
            streams.append(follow(http, run))
            assert next(streams[-1])[2]["event"] == "started"
        for run, stream in zip(runs, streams, strict=True):
            record(server, run, "round")
            assert next(stream)[2]["event"] == "round"
        for run in runs:
            server.store.mark(run, "stopped", "enough")
        assert [[kind for _, kind, _ in stream] for stream in streams] == [["end"]] * len(runs)


def test_nobody_follows_too_many_by_asking_for_them_at_once(shared_server: Server) -> None:
    server = shared_server
    digest = server.queue.submit(server.consortium.sign("rush"), "rosa").digest
    server.store.mark(digest, "running")
    record(server, digest, "started")
    asked, answers = threading.Barrier(4 * AT_ONCE_OF_ONE), list[int]()

    def ask(http: httpx.Client) -> None:
        asked.wait(SECONDS)
        with http.stream("GET", f"/v1/runs/{digest}/follow", timeout=SECONDS) as answer:
            answers.append(answer.status_code)
            for _ in answer.iter_bytes():
                pass

    with ExitStack() as clients:
        token, own = server.token("otto"), []
        for _ in range(asked.parties):
            own.append(clients.enter_context(server.http(token)))
            own[-1].get("/v1/sessions/current")  # connects
        streams = [threading.Thread(target=ask, args=(http,)) for http in own]
        for stream in streams:
            stream.start()
        wait_until(lambda: len(answers) == len(streams))
        server.store.mark(digest, "stopped", "enough")
        for stream in streams:
            stream.join(SECONDS)
    assert sorted(answers) == [200] * AT_ONCE_OF_ONE + [429] * (3 * AT_ONCE_OF_ONE)


def test_a_stream_whose_reader_has_gone_counts_no_more(shared_server: Server) -> None:
    server = shared_server
    digest = server.queue.submit(server.consortium.sign("gone"), "rosa").digest
    server.store.mark(digest, "running")
    record(server, digest, "started")
    with server.http(server.token("aude")) as http:
        events = follow(http, digest)
        next(events)
        wait_until(lambda: server.port._following._streams == {"aude": 1})  # those of earlier tests end
        events.close()  # type: ignore[attr-defined]  # a generator
    wait_until(lambda: not server.port._following._streams)


def test_a_stream_ends_with_its_session(shared_server: Server) -> None:
    server = shared_server
    digest = server.queue.submit(server.consortium.sign("endless"), "rosa").digest
    server.store.mark(digest, "running")
    record(server, digest, "started")
    token = server.token("aude")
    with server.http(token) as http, server.http(token) as other:
        events = follow(http, digest)
        next(events)
        assert other.delete("/v1/sessions/current").status_code == 204
        assert list(events) == []


def test_a_server_that_stops_with_the_run_still_tells_how_it_ended(consortium: Consortium) -> None:
    with serving(consortium) as server:
        digest = server.queue.submit(consortium.sign("last"), "rosa").digest
        server.store.mark(digest, "running")
        with server.http(server.token("rosa")) as http:
            seen = list[str]()
            client = threading.Thread(target=lambda: seen.extend(kind for _, kind, _ in follow(http, digest)))
            client.start()
            wait_until(lambda: server.port._following._streams)
            record(server, digest, "finished")
            server.store.mark(digest, "finished")
            server.port.stop()
            client.join(SECONDS)
    assert seen == ["message", "end"]


def wait_until(holds: Any) -> None:  # noqa: ANN401 - a function
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
