"""Sign in: one fresh challenge, one signature for this server and this purpose, one token; failures are counted."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from privacy.run.manifest import KIND
from privacy.storage import write_atomically
from server.api import asking
from server.api.asking import FAILURES_BURST
from server.api.people import MOST_SESSIONS
from server.challenges import Challenges
from server.store.sessions import Session, StoredSessions
from tests.server.api.consortia import serving
from transport.channel import authority_context
from transport.pki import Authority, certificate_pem, read_authority, read_tls_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.server.api.consortia import Consortium, Server


@pytest.fixture
def server(consortium: Consortium) -> Iterator[Server]:
    """A server of its own, since failures are counted."""
    with serving(consortium) as server:
        yield server


def test_a_person_signs_in_with_their_key(server: Server) -> None:
    session = server.sign_in("rosa").json()
    assert (session["person"], session["role"], session["rights"]) == ("rosa", "researcher", ["sign", "look"])
    with server.http(session["token"]) as http:
        assert http.get("/v1/sessions/current").json()["person"] == "rosa"


def test_a_signature_of_anything_else_is_refused_as_a_stranger_is(server: Server) -> None:
    other = Ed25519PrivateKey.generate()
    cases: list[dict[str, Any]] = [
        {"key": other},
        {"key": server.consortium.key("otto")},
        {"kind": KIND},
        {"host": "elsewhere.example.org"},
        {"stated": {"authority": "0" * 64}},
        {"stated": {"consortium": "another"}},
        {"signature": "0" * 128},
    ]
    told = set()
    for changes in cases:
        answer = server.sign_in("rosa", **changes)
        assert answer.status_code == 401, changes
        told.add(answer.json()["detail"])
    stranger = server.sign_in("mallory", key=other)
    assert {stranger.json()["detail"].replace("mallory", "rosa")} == told


def test_a_challenge_is_answered_once_by_whoever_asked_for_it_and_soon(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.http() as http:
        challenge = http.post("/v1/challenges", json={"person": "rosa"}).json()["challenge"]
    assert server.sign_in("otto", challenge=challenge).status_code == 401
    assert server.sign_in("rosa", challenge=challenge).status_code == 201
    again = server.sign_in("rosa", challenge=challenge)
    assert (again.status_code, "answered before" in again.json()["detail"]) == (401, True)
    assert server.sign_in("rosa", challenge="0" * 112).status_code == 401
    monkeypatch.setattr(Challenges, "issued", lambda *_: 0.0)
    assert server.sign_in("rosa", challenge=challenge).status_code == 401  # even if it were not too old


@pytest.fixture
def unforgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgive no failure while a test goes on."""
    monkeypatch.setattr(asking, "FAILURES_RATE", 1e-3)


@pytest.mark.usefixtures("unforgiving")
def test_who_fails_too_often_has_to_wait_and_so_does_a_stranger_with_a_good_key_there(server: Server) -> None:
    answers = [server.sign_in("rosa", signature="0" * 128).status_code for _ in range(int(FAILURES_BURST) + 2)]
    assert answers == [401] * int(FAILURES_BURST) + [429, 429]
    refused = server.sign_in("rosa")
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) > 0


def test_one_more_session_than_a_person_may_have_ends_their_oldest(server: Server) -> None:
    tokens = [server.token("aude") for _ in range(MOST_SESSIONS + 1)]
    assert len(server.store.sessions.of("aude")) == MOST_SESSIONS
    with server.http(tokens[0]) as first, server.http(tokens[-1]) as last:
        assert first.get("/v1/sessions/current").status_code == 401
        assert last.get("/v1/sessions/current").status_code == 200


def test_a_store_that_is_away_keeps_whoever_signs_in_waiting_and_nobody_else(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, add = server.token("otto"), StoredSessions.add
    waits, back = Event(), Event()

    def away(sessions: StoredSessions, session: Session) -> None:
        waits.set()
        assert back.wait(20)
        add(sessions, session)

    monkeypatch.setattr(StoredSessions, "add", away)
    with ThreadPoolExecutor(1) as others, server.http(token) as http:
        assert http.get("/v1/sessions/current").status_code == 200  # which needs the store once
        signing_in = others.submit(server.sign_in, "rosa")
        try:
            assert waits.wait(20)
            assert http.post("/v1/challenges", json={"person": "aude"}).status_code == 201
            assert http.get("/v1/sessions/current").json()["person"] == "otto"
        finally:
            back.set()
        assert signing_in.result().status_code == 201


def test_the_server_shows_a_certificate_of_its_own_authority_and_takes_no_older_tls(server: Server) -> None:
    stranger = authority_context(Authority.create("other").certificate.public_bytes(Encoding.DER))
    with httpx.Client(verify=stranger, trust_env=False) as http, pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
        http.get(f"https://{server.address}/v1/openapi.json")
    old = ssl.create_default_context(cafile=server.consortium.server / "authority.pem")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=old, trust_env=False) as http, pytest.raises(httpx.ConnectError):
        http.get(f"https://{server.address}/v1/openapi.json")


def test_a_renewed_certificate_is_shown_to_the_next_connection(server: Server) -> None:
    path, folder = server.consortium.server / "tls.pem", server.consortium.folder / "coordinator"
    key = read_tls_key(server.consortium.server / "tls.key")
    before = shown(server)
    path.write_bytes(b"no certificate")
    assert shown(server) == before
    renewed = read_authority(folder / "authority.key", folder / "authority.pem").issue_server(
        "localhost", key.public_key()
    )
    write_atomically(path, certificate_pem(renewed))
    assert shown(server) == renewed.public_bytes(Encoding.DER) != before


def shown(server: Server) -> bytes:
    """Return the certificate that the server shows, DER."""
    pem = ssl.get_server_certificate(("localhost", server.port.port))
    return ssl.PEM_cert_to_DER_cert(pem)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"person": "rosa", "admin": true}',
        b'{"person": "Rosa!"}',
        b'{"person": 3}',
        b"\xff",
        b"[" * 10_000,
    ],
)
def test_what_is_no_request_is_refused_in_a_sentence(server: Server, body: bytes) -> None:
    with server.http() as http:
        refused = http.post("/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["detail"].endswith("; correct the request")
