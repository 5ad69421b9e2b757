"""Sign in with an organisation's account: the authorization-code flow of native applications, with PKCE.

The browser comes back to a port of this machine's loopback interface (RFC 8252, section 7.3), with a code that is worth
nothing without the secret that never left this process (RFC 7636). The server's challenge is the nonce of the identity
token that the code buys: the token signs in once, at that server.

Where this machine has no browser, the person opens the address elsewhere, and pastes what the browser comes back with:
the address of a page that it cannot show. (The flow for devices, RFC 8628, carries no nonce.)
"""

from __future__ import annotations

import secrets
import select
import ssl
import sys
import time
import webbrowser
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import typer
from typing_extensions import override

from privacy.errors import AuthenticityError, ConfigError, MalformedError, UnreachableError
from privacy.untrusted_text import plain

_SECONDS = 600.0  # for a person to sign in
_ANSWER_SECONDS = 15.0
_LOOK_SECONDS = 1.0
_ELSEWHERE = (
    "no browser opens here: open the address in one on any machine, sign in, and paste the address of the page that it "
    "then cannot show (http://127.0.0.1…):"
)
_PAGE = b"<!doctype html><title>Cloister</title><p>You can close this page and go back to the terminal.</p>"


def identity_token(described: object, nonce: str) -> str:
    """Have a person sign in to their organisation's account, and return the identity token.

    Args:
        described: what the server says about the accounts: `issuer` and `client_id`.
        nonce: the server's challenge.

    Raises:
        ConfigError: if the server knows no accounts, or what this needs is not installed.
        AuthenticityError: if the person, or the provider, declines.
        UnreachableError: if the provider cannot be reached, or nobody signs in within ten minutes.
    """
    issuer, client_id = _accounts(described)
    try:
        from authlib.integrations.base_client import OAuthError  # noqa: PLC0415 - few need it
        from authlib.integrations.httpx_client import OAuth2Client  # noqa: PLC0415
    except ImportError as error:
        msg = "signing in with an account needs a package that is not installed: pip install 'cloister[oidc]'"
        raise ConfigError(msg) from error
    verifier = secrets.token_urlsafe(48)
    with HTTPServer(("127.0.0.1", 0), _Return) as back:
        back.timeout = 1.0
        address = f"http://127.0.0.1:{back.server_port}/"
        with OAuth2Client(  # pyright: ignore[reportGeneralTypeIssues] - as httpx's client is
            client_id, redirect_uri=address, scope="openid email", code_challenge_method="S256",
            token_endpoint_auth_method="none", timeout=_ANSWER_SECONDS,  # noqa: S106 - there is no secret
            verify=ssl.create_default_context(),  # whom this system trusts, as its browser does
        ) as client:  # fmt: skip
            try:
                provider = client.request("GET", f"{issuer}/.well-known/openid-configuration", withhold_token=True)
                provider.raise_for_status()
                known = provider.json()
                start, tokens = (_secure(known[name]) for name in ("authorization_endpoint", "token_endpoint"))
                url, state = client.create_authorization_url(start, code_verifier=verifier, nonce=nonce)
                typer.echo(f"sign in here: {url}", err=True)
                if not webbrowser.open(url) and _typing():
                    typer.echo(_ELSEWHERE, err=True)
                returned = _returned(back, state)
                token = client.fetch_token(tokens, authorization_response=f"{address}?{returned}",
                                           code_verifier=verifier)["id_token"]  # fmt: skip
            except OAuthError as error:
                msg = f"{issuer} did not sign you in: {plain(str(error))}"
                raise AuthenticityError(msg) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                msg = f"{issuer} cannot be reached: {plain(str(error))}; check your network, or sign in with your key"
                raise UnreachableError(msg) from error
            except (ValueError, KeyError, TypeError) as error:
                msg = f"{issuer} does not answer as OpenID Connect does; tell the server's operator"
                raise MalformedError(msg) from error
    return str(token)


def _accounts(described: object) -> tuple[str, str]:
    if not isinstance(described, dict):
        msg = (
            "this server knows no organisation's accounts; leave out --account, and sign in with the key in your folder"
        )
        raise ConfigError(msg)
    return _secure(str(described.get("issuer"))), str(described.get("client_id"))


def _secure(url: str) -> str:
    if not url.startswith("https://"):
        msg = f"{plain(url)} is no address with TLS; tell the server's operator"
        raise MalformedError(msg)
    return url


def _returned(back: HTTPServer, state: str) -> str:
    """Wait for the browser to come back, and return the query that it brings."""
    deadline, sources = time.monotonic() + _SECONDS, [back, *([sys.stdin] if _typing() else [])]
    while time.monotonic() < deadline:
        query = ""
        for ready in select.select(sources, [], [], _LOOK_SECONDS)[0]:
            if ready is back:
                _Return.query = ""
                back.handle_request()
                query = _Return.query
            elif line := sys.stdin.readline():
                query = urlsplit(line.strip()).query
                if parse_qs(query).get("state") != [state]:
                    typer.echo("this is not the address that the browser came back to; paste all of it", err=True)
            else:
                sources.remove(sys.stdin)  # there is no more
            if parse_qs(query).get("state") == [state]:
                return query
    msg = f"nobody signed in within {_SECONDS / 60:g} minutes; try again"
    raise UnreachableError(msg)


def _typing() -> bool:
    """Return whether somebody can type here; Windows cannot wait for them and for a browser at the same time."""
    return sys.platform != "win32" and sys.stdin.isatty()


class _Return(BaseHTTPRequestHandler):
    """Takes one request of a browser."""

    query = ""
    timeout = 5.0  # seconds, for a connection that says nothing

    def do_GET(self) -> None:
        """Note the query, and show a page."""
        type(self).query = urlsplit(self.path).query
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(_PAGE)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
