"""What nobody can do to the API: send too much, too slowly or too often, or read how it failed."""

from __future__ import annotations

import socket
import ssl
import time
import tracemalloc
from contextlib import ExitStack
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
import pytest

from server.api import asking, guard, listening
from server.api.guard import LARGEST_BODY
from server.api.limits import Buckets
from tests.federations import await_condition
from tests.server.api.consortia import Queue, serving
from transport import http_connections
from transport.api import LARGEST_RUN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.server.api.consortia import Consortium, Server

SHORT, LONG = 0.3, 20.0
CONNECTIONS = 20


@pytest.fixture
def hasty(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with little patience."""
    monkeypatch.setattr(guard, "BODY_SECONDS", SHORT)
    monkeypatch.setattr(listening, "HANDSHAKE_SECONDS", SHORT)
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(listening, "IDLE_SECONDS", 1)
    with serving(consortium) as server:
        yield server


def dialled(server: Server) -> socket.socket:
    return socket.create_connection(("localhost", server.port.port), timeout=LONG)


def secured(server: Server) -> AbstractContextManager[ssl.SSLSocket]:
    """Connect, again where this machine was too slow for a hasty server's patience."""
    context = ssl.create_default_context(cafile=server.consortium.server / "authority.pem")
    deadline = time.monotonic() + LONG
    while True:
        try:
            return context.wrap_socket(dialled(server), server_hostname="localhost")
        except (ConnectionError, ssl.SSLError):
            assert time.monotonic() < deadline


def answer_of_hasty(server: Server, request: bytes) -> bytes:
    """As `answer_to`, but ask again where this machine was too slow for the server's patience."""
    deadline = time.monotonic() + LONG
    while not (answer := answer_to(server, request)):
        assert time.monotonic() < deadline
    return answer


def answer_to(server: Server, request: bytes) -> bytes:
    """Send bytes, and return everything that comes until the server closes the connection."""
    with secured(server) as line:
        line.sendall(request)
        return everything(line)


def everything(line: socket.socket) -> bytes:
    answer = b""
    try:
        while part := line.recv(1 << 16):
            answer += part
    except (ConnectionError, ssl.SSLError):
        pass
    return answer


def test_a_body_is_refused_once_it_is_too_large_whatever_it_says(shared_server: Server) -> None:
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    large = bytes(LARGEST_BODY + 1)
    declared = answer_to(shared_server, head + b"Content-Length: 300000000\r\n\r\n")
    chunked = answer_to(shared_server, head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(large), large))
    for answer in (declared, chunked):
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert b'"detail":"the body has more than 16 KiB, which is the limit here"' in answer


def test_a_run_is_refused_once_it_is_too_large(shared_server: Server) -> None:
    token = shared_server.token("rosa").encode()
    answer = answer_to(
        shared_server,
        b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (token, LARGEST_RUN + 1),
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body has more than 4096 KiB" in answer


def test_a_run_of_nobody_is_refused_before_it_is_read(shared_server: Server) -> None:
    answer = answer_to(
        shared_server,
        b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        b"Connection: close\r\nContent-Length: 4000000\r\n\r\n",
    )
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_what_is_slow_is_cut_off(hasty: Server) -> None:
    began = time.monotonic()
    with dialled(hasty) as line:  # no TLS
        assert everything(line) == b""
    with secured(hasty) as line:  # no request
        assert everything(line) == b""
    assert answer_to(hasty, b"GET /v1/runs HTTP/1.1\r\nHost: local") == b""
    head = (
        b"POST /v1/challenges HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\n\r\n{"
    )
    assert answer_of_hasty(hasty, head).startswith(b"HTTP/1.1 408 ")
    idle = answer_of_hasty(hasty, b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.startswith(b"HTTP/1.1 401 ")
    slow = b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/ru"  # the second is never complete
    assert answer_of_hasty(hasty, slow).count(b"HTTP/1.1") == 1
    assert time.monotonic() < began + LONG


def test_what_is_not_http_is_refused_as_everything_is(shared_server: Server) -> None:
    for request in (b"\x16\x03\x01 nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + bytes(20_000) + b"\r\n\r\n"):
        answer = answer_to(shared_server, request)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in answer


@pytest.mark.parametrize("length", [b"Content-Length: 4000000", b"Transfer-Encoding: chunked"])
def test_who_was_answered_cannot_keep_a_connection_by_sending_on(hasty: Server, length: bytes) -> None:
    began = time.monotonic()
    with secured(hasty) as line:
        line.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n" % length)
        assert line.recv(1 << 10).startswith(b"HTTP/1.1 200 ")
        line.sendall(b"5\r\nabcde\r\n")
        everything(line)
    assert time.monotonic() < began + LONG / 2


def test_one_address_has_few_connections_with_or_without_tls(consortium: Consortium) -> None:
    with serving(consortium, connections_per_address=3) as server, ExitStack() as lines:
        silent = [lines.enter_context(dialled(server)) for _ in range(2)]
        line = lines.enter_context(secured(server))
        assert everything(lines.enter_context(dialled(server))) == b""
        line.sendall(b"GET /v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert everything(line).startswith(b"HTTP/1.1 401 ")
        for each in silent:
            each.close()
        await_condition(lambda: answers(server), LONG)


def answers(server: Server) -> bool:
    try:
        return server.sign_in("rosa").status_code == 201
    except httpx.HTTPError:
        return False


def test_an_address_and_a_person_that_ask_too_often_have_to_wait(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "RATE", 0.01)
    monkeypatch.setattr(asking, "BURST", 5)
    with serving(consortium) as server, server.http(server.token("rosa")) as http:
        codes = [http.get("/v1/runs").status_code for _ in range(8)]
        assert codes[:5] == [200] * 5
        assert 429 in codes
        assert server.token("otto")
    monkeypatch.setattr(guard, "RATE", 0.01)
    monkeypatch.setattr(guard, "BURST", 5)
    with serving(consortium) as server, server.http() as http:
        answers = [http.get("/v1/runs") for _ in range(8)]
        assert [answer.status_code for answer in answers[:5]] == [401] * 5
        late = next(answer for answer in answers if answer.status_code == 429)
        assert late.headers["Content-Type"] == "application/problem+json"
        assert int(late.headers["Retry-After"]) >= 1


def test_buckets_fill_again_and_do_not_grow_without_end() -> None:
    now = 0.0
    buckets = Buckets(rate=1.0, burst=2.0, now=lambda: now)
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, 1.0]
    now = 1.5
    assert buckets.wait("a") == 0.0
    assert [buckets.take("a") for _ in range(2)] == [0.0, 0.5]
    buckets.give("a")
    assert buckets.take("a") == 0.0
    for _ in range(5):
        buckets.give("b")
    assert [buckets.take("b") for _ in range(3)] == [0.0, 0.0, 1.0]
    for number in range(10_000):
        buckets.take(str(number))
    assert len(buckets._buckets) <= 4096


def test_an_unexpected_error_is_told_to_nobody(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        msg = "Mrs Smith, 1961"
        raise ValueError(msg)

    token = shared_server.token("rosa")
    monkeypatch.setattr(Queue, "status", fail)
    with shared_server.http(token) as http:
        answer = http.get("/v1/status")
        assert answer.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        assert "something went wrong in the server" in answer.json()["detail"]
        assert "Smith" not in answer.text
        assert "Traceback" not in answer.text
        assert http.get("/v1/runs").status_code == 200


def test_every_answer_has_the_headers_that_browsers_heed_and_none_that_lets_other_pages_in(
    shared_server: Server,
) -> None:
    with shared_server.http() as http:
        for path, origin in (("/v1/openapi.json", ""), ("/v1/runs", "https://evil.example"), ("/nothing", "null")):
            answer = http.get(path, headers={"Origin": origin} if origin else {})
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["Strict-Transport-Security"]
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "server" not in answer.headers
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        assert http.options("/v1/sessions", headers=asked).status_code == 405


def test_whoever_connects_takes_little_memory(shared_server: Server) -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with ExitStack() as stack:
            for _ in range(CONNECTIONS):
                stack.enter_context(secured(shared_server))
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < CONNECTIONS * (100 << 10)
