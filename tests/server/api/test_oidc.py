"""People who sign in with their organisation's account: what it vouches for, and what no token can do."""

from __future__ import annotations

import json
import os
import ssl
import sys
import threading
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from cloister import Client
from privacy.errors import AuthenticityError, ConfigError
from server.api import asking, oidc
from tests.federations import await_condition
from tests.server.api.consortia import SECONDS, Consortium, serving, set_api
from tests.server.api.provider import CLIENT, providing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cloister.in_process import Run
    from tests.server.api.consortia import Server
    from tests.server.api.provider import OpenIdProvider

LONG = 2 * SECONDS  # than an answer of the server may take

pytestmark = pytest.mark.filterwarnings("ignore:JWS algorithm")  # tests sign with bad ones


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[OpenIdProvider]:
    with providing(tmp_path / "provider") as provider:
        yield provider


@pytest.fixture
def server(
    provider: OpenIdProvider, federation_keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    monkeypatch.setattr(asking, "FAILURES_BURST", 1000.0)
    consortium = Consortium.make(federation_keys, tmp_path / "consortium")
    people = '"rosa@lungs.example" = "rosa"\n"gone@lungs.example" = "gone"\n'
    set_api(
        consortium,
        f"""
[api.oidc]
issuer = "{provider.issuer}"
client_id = "{CLIENT}"
ca_bundle = "{provider.authority}"

[api.oidc.people]
{people}""",
    )
    with serving(consortium) as server:
        yield server


def nonce(server: Server) -> str:
    with server.http() as http:
        answer = http.post("/v1/challenges", json={}).json()
    assert answer["oidc"]["client_id"] == CLIENT
    return str(answer["challenge"])


def present(server: Server, challenge: str, token: str) -> httpx.Response:
    with server.http() as http:
        return http.post("/v1/sessions/oidc", json={"challenge": challenge, "id_token": token})


def test_an_account_of_the_organisation_is_a_person_of_the_roster_whose_role_decides(
    server: Server, provider: OpenIdProvider
) -> None:
    challenge = nonce(server)
    session = present(server, challenge, provider.token(challenge))
    assert session.status_code == 201, session.text
    assert (session.json()["person"], session.json()["role"]) == ("rosa", "researcher")
    again = present(server, challenge, provider.token(challenge))
    assert (again.status_code, "answered before" in again.json()["detail"]) == (401, True)
    server.consortium.remove("rosa")
    with server.http(session.json()["token"]) as http:
        assert http.get("/v1/sessions/current").status_code == 401
    challenge = nonce(server)
    assert present(server, challenge, provider.token(challenge)).status_code == 401


def test_a_token_that_breaks_one_rule_of_openid_connect_is_refused(server: Server, provider: OpenIdProvider) -> None:
    other = RSAKey.generate_key(2048, {"kid": "1"})
    cases: list[dict[str, Any]] = [
        {"iss": "https://elsewhere.example"},
        {"iss": None},
        {"aud": "another"},
        {"aud": None},
        {"aud": [CLIENT, "another"]},
        {"azp": "another"},
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"iat": 1 << 40},
        {"nonce": "0" * 112},
        {"nonce": None},
        {"sub": None},
        {"key": other},
        {"alg": "none"},
        {"alg": "HS256", "key": OctKey.import_key(json.dumps(provider.key.as_dict(private=False)).encode())},
        {"alg": "ES256", "key": ECKey.generate_key("P-256", {"kid": "1"})},
        {"header": {"kid": "unknown"}},
        {"email": "mallory@lungs.example"},
        {"email": "gone@lungs.example"},
        {"email_verified": False},
        {"email_verified": None},
        {"email": ["rosa@lungs.example"]},
    ]
    for changes in cases:
        challenge = nonce(server)
        refused = present(server, challenge, provider.token(challenge, **changes))
        assert refused.status_code == (422 if changes.get("alg") == "none" else 401), (changes, refused.text)
    challenge = nonce(server)
    signed, stolen = provider.token(challenge), nonce(server)
    assert present(server, stolen, signed).status_code == 401
    head, body, signature = signed.split(".")
    for token in (f"{head}.{body}.{signature[:-4]}AAAA", f"{head}.{body}.", "a.b.c", "W1tb" * 2000 + ".b.c"):
        assert present(server, challenge, token).status_code in {401, 422}
    assert present(server, challenge, signed).status_code == 201
    assert provider.fetched <= 2  # whoever sends rubbish makes nobody fetch keys


def test_new_keys_of_the_provider_are_fetched(
    server: Server, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenge = nonce(server)
    assert present(server, challenge, provider.token(challenge)).status_code == 201
    monkeypatch.setattr(oidc, "_RETRY_SECONDS", 0.0)
    provider.key = RSAKey.generate_key(2048, {"kid": "2"})
    challenge = nonce(server)
    assert present(server, challenge, provider.token(challenge, header={"kid": "2"})).status_code == 201
    provider.published = KeySet([])


def test_a_provider_that_does_not_answer_as_one_is_named(
    server: Server, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for document in ({}, {"issuer": "https://elsewhere"}, {"issuer": provider.issuer, "jwks_uri": "http://localhost/"}):
        monkeypatch.setattr(provider, "document", lambda document=document: document)
        challenge = nonce(server)
        refused = present(server, challenge, provider.token(challenge))
        assert (refused.status_code, "gives no keys" in refused.json()["detail"]) == (503, True)


def test_strangers_cannot_make_everybody_wait_for_a_provider_that_does_not_answer(
    server: Server, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = list[str](), threading.Event()

    def silent() -> dict[str, str]:
        asked.append("once")
        answer.wait(LONG)
        return {}

    monkeypatch.setattr(oidc, "_SECONDS", LONG)
    monkeypatch.setattr(oidc, "_PAUSE_SECONDS", LONG)
    monkeypatch.setattr(provider, "document", silent)
    challenge, token = nonce(server), server.token("rosa")
    with ThreadPoolExecutor(40) as strangers:
        told = [strangers.submit(present, server, challenge, "a.b.c") for _ in range(40)]
        await_condition(lambda: bool(asked))
        with server.http(token) as http:
            assert http.get("/v1/runs").status_code == 200
        answer.set()
        assert {each.result().status_code for each in told} == {503}
    assert len(asked) == 1


def test_a_person_signs_in_with_a_browser(
    server: Server, provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch, cloister: Run
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(provider.authority))
    browsers = list[threading.Thread]()

    def browse(url: str) -> bool:
        """Follow an address, as a browser with a person before it."""

        context = ssl.create_default_context(cafile=provider.authority)

        def visit() -> None:
            with httpx.Client(verify=context, trust_env=False, follow_redirects=True) as http:
                http.get(url.split("?", maxsplit=1)[0].replace("/authorize", "/favicon.ico"))
                assert "You can close this page" in http.get(url).text

        browsers.append(threading.Thread(target=visit))
        browsers[-1].start()
        return True

    monkeypatch.setattr(webbrowser, "open", browse)
    folder = server.consortium.path("rosa")
    signed_in = cloister("login", "--account", "--as", folder, "--api", server.address)
    assert signed_in.returncode == 0, signed_in.stderr
    assert signed_in.stdout.startswith(f"✓ signed in to {server.address} as rosa, researcher")
    assert signed_in.stderr.startswith(f"sign in here: {provider.issuer}/authorize?")
    for browser in browsers:
        browser.join()
    with Client(folder) as client:
        assert list(client.runs()) == []
        with server.http(client.token) as http:
            assert http.delete("/v1/sessions/current").is_success
        with pytest.raises(AuthenticityError, match="sign in again: cloister login --account"):
            client.status()


def test_a_person_signs_in_with_a_browser_on_another_machine(
    server: Server, provider: OpenIdProvider, cloister: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(provider.authority))
    provider.claims = {"email": "rosa@lungs.example", "email_verified": True}
    context = ssl.create_default_context(cafile=provider.authority)
    terminal, ours = os.openpty()

    def no_browser(url: str) -> bool:
        with httpx.Client(verify=context, trust_env=False) as elsewhere:
            returned = elsewhere.get(url).headers["Location"]
        os.write(terminal, f"what?\n{returned}\n".encode())
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    with open(ours, encoding="utf-8") as stdin:  # noqa: PTH123 - it is no path
        monkeypatch.setattr(sys, "stdin", stdin)
        folder = server.consortium.path("rosa")
        signed_in = cloister("login", "--account", "--as", folder, "--api", server.address)
    os.close(terminal)
    assert signed_in.returncode == 0, signed_in.stderr
    assert "no browser opens here: open the address in one on any machine" in signed_in.stderr
    assert "this is not the address that the browser came back to; paste all of it" in signed_in.stderr
    assert signed_in.stdout.startswith(f"✓ signed in to {server.address} as rosa, researcher")


def test_a_server_without_accounts_says_so(shared_server: Server) -> None:
    with (
        Client(shared_server.consortium.path("rosa"), shared_server.address) as client,
        pytest.raises(ConfigError, match="leave out --account"),
    ):
        client.login(account=True)
    with shared_server.http() as http:
        answer = http.post("/v1/sessions/oidc", json={"challenge": "0" * 112, "id_token": "a.b.c"})
    assert (answer.status_code, "knows no organisation's accounts" in answer.json()["detail"]) == (404, True)
