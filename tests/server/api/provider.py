"""An OpenID provider of one organisation, over TLS: it signs in whoever comes, and says what a test has it say."""

from __future__ import annotations

import json
import secrets
import ssl
import threading
import time
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from typing_extensions import override

from transport.pki import Authority, certificate_pem, key_pem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENT = "cloister"


@dataclass
class OpenIdProvider:
    """One organisation's accounts."""

    issuer: str
    authority: Path  # who issued its certificate, PEM
    claims: dict[str, Any] = field(default_factory=dict)  # instead of the usual ones
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    published: KeySet | None = None
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    fetched: int = 0  # how often its keys were

    def token(self, challenge: str, **changes: Any) -> str:  # noqa: ANN401 - claims of any kind
        """Return an identity token for rosa, but for what is changed."""
        header = {"alg": changes.pop("alg", "RS256"), "kid": "1"} | changes.pop("header", {})
        key, now = changes.pop("key", self.key), int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT, "sub": "0815", "iat": now, "exp": now + 300, "nonce": challenge,
            "email": "rosa@lungs.example", "email_verified": True,
        } | self.claims | changes  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(header, kept, key, algorithms=["RS256", "HS256", "none", "ES256"])

    def document(self) -> dict[str, str]:
        names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
        return {"issuer": self.issuer, **{name: f"{self.issuer}/{path}" for name, path in names.items()}}


@contextmanager
def providing(folder: Path) -> Iterator[OpenIdProvider]:
    """Run a provider on a free port of this machine."""
    authority, key = Authority.create("organisation"), ec.generate_private_key(ec.SECP256R1())
    folder.mkdir()
    (folder / "authority.pem").write_bytes(certificate_pem(authority.certificate))
    (folder / "pair.pem").write_bytes(
        certificate_pem(authority.issue_server("localhost", key.public_key())) + key_pem(key)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pair.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        provider = OpenIdProvider(f"https://localhost:{server.server_port}", folder / "authority.pem")
        server.provider = provider  # type: ignore[attr-defined]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    @property
    def provider(self) -> OpenIdProvider:
        provider: OpenIdProvider = self.server.provider  # type: ignore[attr-defined]
        return provider

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(place.query).items()}
        if place.path == "/.well-known/openid-configuration":
            self.say(self.provider.document())
        elif place.path == "/keys":
            self.provider.fetched += 1
            self.say(dict((self.provider.published or KeySet([self.provider.key])).as_dict(private=False)))
        elif place.path == "/authorize" and asked["code_challenge_method"] == "S256":
            code = secrets.token_hex(8)
            self.provider.codes[code] = asked
            self.send_response(302)
            self.send_header(
                "Location", f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
            )
            self.end_headers()
        else:
            self.say({}, 404)

    def do_POST(self) -> None:
        sent = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        asked = self.provider.codes.pop(sent["code"][0], None)
        proof = urlsafe_b64encode(sha256(sent["code_verifier"][0].encode()).digest()).rstrip(b"=").decode()
        if not asked or proof != asked["code_challenge"] or sent["redirect_uri"][0] != asked["redirect_uri"]:
            self.say({"error": "invalid_grant"}, 400)
            return
        token = self.provider.token(asked["nonce"])
        self.say({"access_token": "x", "token_type": "Bearer", "expires_in": 60, "id_token": token})

    def say(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
