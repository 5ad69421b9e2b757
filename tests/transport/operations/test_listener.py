"""The port for operators: what it answers, and that it answers nothing else."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from privacy.errors import UnreachableError
from transport import http_connections
from transport.operations.listener import Listener, serve


@pytest.fixture
def troubles() -> list[str]:
    return []


@pytest.fixture
def port(troubles: list[str]) -> Iterator[Listener]:
    registry = CollectorRegistry()
    Gauge("cloister_test", "Text with ε", ["site"], registry=registry).labels("north").set(0.5)
    listener = serve("localhost:0", lambda: troubles[:1], lambda: troubles, registry)
    yield listener
    listener.stop()


def get(port: Listener, path: str, method: str = "GET") -> httpx.Response:
    return httpx.request(method, f"http://localhost:{port.port}{path}", timeout=10, trust_env=False)


def test_it_says_ok_or_every_reason_why_not(port: Listener, troubles: list[str]) -> None:
    for path in ("/livez", "/readyz"):
        answer = get(port, path)
        assert (answer.status_code, answer.text) == (200, "ok\n")
    troubles += ["the store cannot be written", "no roster"]
    assert (get(port, "/readyz").status_code, get(port, "/readyz").text) == (
        503,
        "the store cannot be written\nno roster\n",
    )
    assert (get(port, "/livez").status_code, get(port, "/livez").text) == (503, "the store cannot be written\n")


def test_metrics_are_what_prometheus_reads(port: Listener) -> None:
    answer = get(port, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    (family,) = text_string_to_metric_families(answer.text)
    assert (family.name, family.samples[0].labels, family.samples[0].value) == ("cloister_test", {"site": "north"}, 0.5)
    answer = httpx.get(f"http://localhost:{port.port}/metrics", headers={"accept": "application/openmetrics-text"},
                       timeout=10, trust_env=False)  # fmt: skip
    assert answer.headers["content-type"].startswith("application/openmetrics-text")


def test_it_answers_nothing_else_and_does_not_name_its_server(port: Listener) -> None:
    assert get(port, "/").status_code == get(port, "/metrics/../etc").status_code == 404
    assert get(port, "/livez", "POST").status_code == get(port, "/metrics", "DELETE").status_code == 405
    assert "server" not in get(port, "/livez").headers


def test_head_and_body_of_each_answer_come_together(port: Listener) -> None:
    with socket.create_connection(("localhost", port.port), timeout=20) as line:
        for _ in range(3):
            line.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = line.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"\r\n\r\nok\n")


def test_connections_that_say_nothing_do_not_make_it_look_ill(port: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "HEAD_SECONDS", 0.3)
    with ExitStack() as lines:
        silent = [
            lines.enter_context(socket.create_connection(("localhost", port.port), timeout=20)) for _ in range(64)
        ]
        for line in silent:  # beyond the limit at once, the others soon
            with suppress(ConnectionError):
                assert line.recv(1) == b""
        assert get(port, "/livez").status_code == 200


def test_an_address_that_is_taken_is_named(port: Listener) -> None:
    with pytest.raises(UnreachableError, match=rf"cannot listen on localhost:{port.port}: .*in use.*\[operations\]"):
        serve(f"localhost:{port.port}", tuple, tuple, CollectorRegistry())


def test_a_stopped_port_is_free(port: Listener) -> None:
    port.stop()
    port.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port.port), timeout=5)
