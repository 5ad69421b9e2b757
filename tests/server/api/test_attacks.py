"""Somebody who tries the API with what no client sends: odd paths, heads, bodies and numbers, many attempts at once."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest

from server.api import asking, guard
from server.api.asking import FAILURES_BURST
from tests.federations import await_condition
from tests.server.api.consortia import SECONDS, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.api.consortia import Consortium, Server


@pytest.fixture
def server(consortium: Consortium) -> Iterator[Server]:
    """A server of its own, since failures are counted."""
    with serving(consortium) as server:
        yield server


def secured(server: Server, *, buffer: int = 0) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=server.consortium.server / "authority.pem")
    line = socket.socket()
    line.settimeout(SECONDS)
    if buffer:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    line.connect(("localhost", server.port.port))
    return context.wrap_socket(line, server_hostname="localhost")


def answer_to(server: Server, request: bytes) -> bytes:
    with secured(server) as line:
        line.sendall(request)
        answer = b""
        try:
            while part := line.recv(1 << 16):
                answer += part
        except (ConnectionError, ssl.SSLError):
            pass
    return answer


def is_problem(answer: httpx.Response) -> bool:
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert "Traceback" not in answer.text
    assert "\n" not in problem["detail"]
    return bool(problem["detail"])


@pytest.mark.parametrize(
    "path",
    [
        "//v1/runs", "/v1//runs", "/v1/runs/..%2f..%2fetc%2fpasswd", "/v1/./runs/x", "/v1/runs;x=1", "/V1/RUNS",
        "/v1/runs/%00", "/v1/runs/%ff%fe", "/v1/runs/%e2%80%ae", "/v1/runs/" + "a" * 81, "/v1/runs/%F0%9F%92%A9/events",
        "/v1/runs?limit=" + "9" * 5000, "/v1/runs?limit=-1", "/v1/runs?limit=1e1", "/v1/runs?limit=1&limit=2x",
        "/v1/runs?before=" + "0" * 63, "/v1/runs?status=finished%00", "/v1/runs?limit=%D9%A1%D9%A2a", "/v1/runs?%00=1",
        "/v1/runs/x/events?after=" + "9" * 400, "/v1/runs/x/events?after=9007199254740993", "/v1/roster?x[]=1",
    ],
)  # fmt: skip
def test_odd_paths_and_parameters_are_refused_as_everything_is(path: str, shared_server: Server) -> None:
    with shared_server.http(shared_server.token("rosa")) as http:
        answer = http.send(httpx.Request("GET", httpx.URL(f"https://{shared_server.address}").copy_with(
            raw_path=path.encode()), headers=http.headers))  # fmt: skip
    assert answer.status_code in {404, 422}, answer.text
    assert is_problem(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff\xfe", b"[" * 16_000, b'{"person":' * 1500, b'{"person": "\\ud800"}', b"nul", b'{"person": 1e999}',
        b'{"person": NaN}', b'{"person": ["ana"]}', b'{"person": "ana", "role": "coordinator"}', b'"rosa"',
        b'{"person": "' + "ё".encode() * 40 + b'"}', b'{"person": "rosa\\u0000"}', b'{"person": "ROSA"}',
        b"\xef\xbb\xbf{}", b'{"person": ' + b"9" * 15_000 + b"}",
    ],
)  # fmt: skip
def test_odd_bodies_get_a_sentence(body: bytes, shared_server: Server) -> None:
    with shared_server.http() as http:
        answer = http.post("/v1/sessions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        assert is_problem(answer)
        assert not answer.json()["detail"].startswith(":")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/runs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET /v1/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /v1/runs HTTP/3.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-HTTP-Method-Override: DELETE\r\n\r\n",
        b"GET http://localhost/v1/runs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"TRACE /v1/runs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /v1/runs HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_odd_heads_are_refused_and_end_nothing(head: bytes, shared_server: Server) -> None:
    answer = answer_to(shared_server, head)
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500, answer
    assert b"application/problem+json" in answer
    assert shared_server.sign_in("aude").status_code == 201


def test_attempts_at_once_count_as_those_one_after_another_do(server: Server) -> None:
    tried, statuses, turn = 4 * int(FAILURES_BURST), Counter[int](), threading.Lock()
    begun = threading.Barrier(tried)
    fields = {"person": "rosa", "challenge": "0" * 112, "host": "localhost", "signature": "0" * 128}

    def attempt() -> None:
        with server.http() as http:
            http.get("/v1/openapi.json")  # connects
            begun.wait(SECONDS)
            status = http.post("/v1/sessions", json=fields).status_code
        with turn:
            statuses[status] += 1

    threads = [threading.Thread(target=attempt) for _ in range(tried)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert statuses[429] >= tried - FAILURES_BURST - 2  # a token comes back every 6 s
    assert statuses[401] + statuses[429] == tried


def test_one_challenge_opens_one_session_however_many_answer_it_at_once(server: Server) -> None:
    with server.http() as http:
        challenge = http.post("/v1/challenges", json={"person": "rosa"}).json()["challenge"]
    statuses, turn, begun = Counter[int](), threading.Lock(), threading.Barrier(6)

    def answer() -> None:
        begun.wait(SECONDS)
        status = server.sign_in("rosa", challenge=challenge).status_code
        with turn:
            statuses[status] += 1

    threads = [threading.Thread(target=answer) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert statuses == {201: 1, 401: 5}


@pytest.fixture
def any_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let people ask as often as they like."""
    for module in (asking, guard):
        monkeypatch.setattr(module, "BURST", 1e9)


@pytest.mark.usefixtures("any_rate")
def test_a_session_that_is_ended_while_it_is_used_ends_for_all(server: Server) -> None:
    token, seen, turn = server.token("otto"), Counter[int](), threading.Lock()
    stop = threading.Event()

    def use() -> None:
        with server.http(token) as http:
            while not stop.is_set():
                status = http.get("/v1/sessions/current").status_code
                with turn:
                    seen[status] += 1

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    await_condition(lambda: seen[200] > 3, SECONDS)
    with server.http(token) as http:
        assert http.delete("/v1/sessions/current").status_code == 204
        assert http.get("/v1/sessions/current").status_code == 401
        before = seen[200]
        await_condition(lambda: seen[401] > 3, SECONDS)
    stop.set()
    for thread in threads:
        thread.join(SECONDS)
    assert seen[200] <= before + len(threads)  # answers that were under way


def test_a_token_that_somebody_chose_is_nobodys(server: Server) -> None:
    chosen = "ab" * 32
    with server.http(chosen) as http:
        given = http.post("/v1/challenges", json={"person": "rosa"}, headers={"Cookie": f"session={chosen}"})
        assert "Set-Cookie" not in given.headers
        server.token("rosa")
        assert http.get("/v1/sessions/current").status_code == 401


def test_a_stream_that_nobody_reads_ends_without_an_error(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.3)
    with serving(consortium) as server:
        digest = server.queue.submit(consortium.sign("unread"), "rosa").digest
        server.store.mark(digest, "running")
        record = server.store.record(digest)
        with record.together():
            for _ in range(200):
                record.append({"event": "round", "text": "x" * 50_000})
        token = server.token("rosa")
        with caplog.at_level(logging.INFO), secured(server, buffer=4096) as line:
            head = f"GET /v1/runs/{digest}/follow HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
            line.sendall(head.encode())
            await_condition(lambda: bool(server.port._following._streams), SECONDS)
            await_condition(lambda: not server.port._following._streams, SECONDS)
        assert json.dumps([entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR]) == "[]"
        assert server.sign_in("aude").status_code == 201
