"""Who may do what: every endpoint, for every role, for nobody, and for somebody whose session no longer holds."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from client.joining import prepare
from privacy.run.people import ROLES
from privacy.run.roster import sign_roster
from server.api.people import SESSION_SECONDS
from server.coordinator import Coordinator
from tests.server.api.consortia import PEOPLE, Consortium, serving, set_api
from transport.pki import read_authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from tests.server.api.consortia import Server

EVERYBODY: set[str] = set(ROLES)
PUBLIC = {("POST", "/v1/challenges"), ("POST", "/v1/sessions"), ("POST", "/v1/sessions/oidc")}
MAY: dict[tuple[str, str], set[str]] = {
    ("GET", "/v1/sessions/current"): EVERYBODY,
    ("DELETE", "/v1/sessions/current"): EVERYBODY,
    ("POST", "/v1/runs"): {"coordinator", "researcher"},
    ("GET", "/v1/runs"): EVERYBODY,
    ("GET", "/v1/runs/{run}"): EVERYBODY,
    ("GET", "/v1/runs/{run}/manifest"): EVERYBODY,
    ("GET", "/v1/runs/{run}/events"): EVERYBODY,
    ("GET", "/v1/runs/{run}/follow"): EVERYBODY,
    ("POST", "/v1/runs/{run}/stop"): {"coordinator", "operator"},
    ("POST", "/v1/runs/{run}/retry"): {"coordinator", "operator"},
    ("GET", "/v1/status"): EVERYBODY,
    ("GET", "/v1/roster"): EVERYBODY,
    ("GET", "/v1/ledger-heads"): {"auditor"},
}
"""Which roles may use which endpoint; of a run that somebody else submitted."""


@pytest.fixture(scope="module")
def run(shared_server: Server) -> str:
    """A run of the coordinator's that has failed."""
    server = shared_server
    return server.queue.submit(server.consortium.sign("failed", "founder"), "founder").digest


@pytest.fixture(scope="module")
def tokens(shared_server: Server) -> dict[str, str]:
    return {role: shared_server.token(person) for person, role in PEOPLE.items()}


def ask(server: Server, method: str, path: str, run: str, token: str) -> httpx.Response:
    server.store.mark(run, "running" if path.endswith("stop") else "failed")
    runs = path == "/v1/runs"
    body = server.consortium.sign("again", "founder") if runs and method == "POST" else None
    headers = {"Content-Type": "application/octet-stream"} if body else {}
    with server.http(token) as http:
        return http.request(method, path.format(run=run), content=body, headers=headers)


def test_these_tests_cover_every_endpoint(shared_server: Server) -> None:
    with shared_server.http() as http:
        paths = http.get("/v1/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == MAY.keys() | PUBLIC


@pytest.mark.parametrize(("method", "path"), MAY, ids=map(" ".join, MAY))
def test_only_those_whose_role_allows_it_get_an_answer(
    method: str, path: str, shared_server: Server, run: str, tokens: dict[str, str]
) -> None:
    for role in ROLES:
        token = shared_server.token(next(name for name in PEOPLE if PEOPLE[name] == role)) if method == "DELETE" else (
            tokens[role]
        )  # fmt: skip
        answer = ask(shared_server, method, path, run, token)
        if role in MAY[method, path]:
            assert answer.is_success, (role, answer.text)
        else:
            refused(answer, 403)
            assert "ask one of them" in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path"), MAY, ids=map(" ".join, MAY))
def test_nobody_gets_an_answer_without_a_session(method: str, path: str, shared_server: Server, run: str) -> None:
    for token in ("", "0" * 64, "a token with spaces", "ÿ".encode().hex()):
        answer = ask(shared_server, method, path, run, token)
        refused(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def refused(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_whoever_signed_a_run_may_stop_it_and_nobody_else_of_that_role(shared_server: Server) -> None:
    server = shared_server
    mine = server.queue.submit(server.consortium.sign("mine"), "founder").digest
    others = server.queue.submit(server.consortium.sign("others", "founder"), "rosa").digest
    with server.http(server.token("rosa")) as http:
        refused(http.post(f"/v1/runs/{others}/stop"), 403)
        assert http.post(f"/v1/runs/{mine}/stop", json={"reason": "wrong task"}).json()["status"] == "stopped"
    assert server.queue.stopped[-1] == (mine, "rosa", "wrong task")


# --- Sessions that no longer hold: a consortium of their own, whose roster changes ----------------------------------


@pytest.fixture
def server(federation_keys: Path, tmp_path: Path) -> Iterator[Server]:
    consortium = Consortium.make(federation_keys, tmp_path / "consortium")
    set_api(consortium)
    with serving(consortium) as server:
        yield server


def who(server: Server, token: str) -> Any:  # noqa: ANN401 - JSON
    with server.http(token) as http:
        answer = http.get("/v1/sessions/current")
    return answer.json() if answer.is_success else answer.status_code


def test_a_person_who_is_removed_or_gets_another_key_is_out_with_the_next_request(server: Server) -> None:
    rosa, otto, aude = (server.token(name) for name in ("rosa", "otto", "aude"))
    server.consortium.remove("rosa")
    assert who(server, rosa) == 401
    assert server.sign_in("rosa").status_code == 401
    assert who(server, otto)["role"] == "operator"

    coordinator = Coordinator(server.consortium.folder / "coordinator")
    server.consortium.remove("otto")
    new = prepare(server.consortium.folder / "otto-2", coordinator.invite("otto", role="auditor"))
    coordinator.approve([new])
    assert who(server, otto) == 401
    assert who(server, aude)["role"] == "auditor"


def test_who_was_removed_and_is_listed_again_signs_in_again(server: Server) -> None:
    rosa, otto = server.token("rosa"), server.token("otto")
    assert who(server, rosa)["role"] == "researcher"
    before = server.queue.roster()
    (left,) = [person for person in before.people if person.name == "rosa"]
    server.consortium.remove("rosa")
    server.store.sessions.keep({person.name: person.signing_key for person in server.queue.roster().people})
    now = replace(server.queue.roster(), version=before.version + 2)
    now = replace(now, people=(*now.people, left))
    folder = server.consortium.folder / "coordinator"
    authority = read_authority(folder / "authority.key", folder / "authority.pem")
    (server.consortium.server / "roster").write_bytes(sign_roster(now, authority.key).to_bytes())
    assert who(server, rosa) == 401  # though nobody asked while she was not listed
    assert who(server, otto)["role"] == "operator"
    assert who(server, server.token("rosa"))["role"] == "researcher"


def test_a_session_ends_when_its_person_signs_out_and_after_an_hour(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = server.token("rosa"), server.token("rosa")
    with server.http(first) as http:
        assert http.delete("/v1/sessions/current").status_code == 204
    assert who(server, first) == 401
    ends = who(server, second)["ends"]
    (kept,) = server.store.sessions.of("rosa")
    assert ends == kept.ends == kept.made + SESSION_SECONDS
    people = server.port._following._people
    for now, holds in ((kept.made - 60.0, True), (kept.made - 7200.0, False), (ends - 1.0, True), (ends + 1.0, False)):
        monkeypatch.setattr(people, "_now", lambda now=now: now)
        assert (who(server, second) != 401) is holds


def test_a_session_goes_on_when_the_server_is_started_again(server: Server) -> None:
    token = server.token("rosa")
    with serving(server.consortium) as again:
        assert who(again, token)["person"] == "rosa"


def test_the_store_has_no_token(server: Server) -> None:
    token = server.token("rosa")
    for path in server.consortium.server.iterdir():
        if path.is_file():
            assert token.encode() not in path.read_bytes()
    assert token not in json.dumps([vars(each) for each in server.store.sessions.of("rosa")])
