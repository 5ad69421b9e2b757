"""People who sign in with their organisation's account: OpenID Connect Core 1.0, section 3.1.3.7, checked here.

The client runs the authorization-code flow with PKCE (RFC 7636, RFC 8252) with the provider, and hands over the
identity token. Nothing in it counts before its signature: by a key of the issuer's, with one of a few algorithms. It
must be for this client, of this issuer, valid now, and carry the nonce that this server issued. An account maps to a
person of the roster by `people` in `[api.oidc]`; the roster alone says what that person may do. A provider can thus
look and stop in a person's name; it cannot sign a run.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from privacy.errors import ConfigError, MalformedError
from privacy.untrusted_text import quoted
from server.api.people import BEARER
from server.api.problems import RefusalError, log
from transport.proxies import proxy_for

if TYPE_CHECKING:
    from pathlib import Path

    from joserfc.jwk import KeySet

    from privacy.run.people import Person
    from privacy.run.roster import Roster
    from server.settings import Accounts

ALGORITHMS = ["RS256", "PS256", "ES256"]
"""With which an identity token may be signed: neither `none`, nor with a secret that both sides know."""

_LEEWAY = 60  # seconds that clocks may be apart
_KEYS_SECONDS, _RETRY_SECONDS = 600.0, 30.0  # how long keys are kept; how soon they are fetched again for a new one
_PAUSE_SECONDS = 5.0  # until keys are asked for again that could not be had: anybody can have them asked for
_SECONDS = 5.0  # for the provider to answer
_LARGEST = 256 << 10  # bytes of its answers


class Provider:
    """One organisation's accounts. Thread-safe."""

    def __init__(self, settings: Accounts, folder: Path) -> None:
        """Take `[api.oidc]`, and the folder that it is relative to.

        Raises:
            ConfigError: if the certificates cannot be read, or what OpenID Connect needs is not installed.
        """
        try:
            import joserfc  # noqa: F401, PLC0415 - few servers need it
        except ImportError as error:
            msg = "[api.oidc] in consortium.toml needs a package that is not installed: pip install 'cloister[oidc]'"
            raise ConfigError(msg) from error
        self._settings, self._turn = settings, threading.Lock()
        self._context, self._proxy = _context(settings, folder), None
        if proxy := proxy_for(httpx.URL(settings.issuer).host):
            headers = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else None
            self._proxy = httpx.Proxy(f"http://{proxy.address}", headers=headers)
        self._keys: KeySet | None = None
        self._fetched = -_KEYS_SECONDS

    @property
    def issuer(self) -> str:
        """Who vouches."""
        return self._settings.issuer

    @property
    def client_id(self) -> str:
        """As what the provider knows our clients."""
        return self._settings.client_id

    def person(self, token: str, nonce: str, roster: Roster) -> Person:
        """Return the person of the roster that an identity token is about.

        Raises:
            RefusalError: if the token does not hold, is about nobody, or its keys cannot be had.
        """
        claims = self._claims(token, nonce)
        value = claims.get(self._settings.claim)
        if self._settings.claim == "email" and claims.get("email_verified") is not True:
            value = None
        name = self._settings.people.get(value) if isinstance(value, str) else None
        person = roster.person(name) if name else None
        if person is None:
            log.warning("an account is nobody's: %s %s", self._settings.claim, quoted(str(value), 100))
            detail = (
                f"this account is nobody's in roster {roster.version} of {roster.consortium}; ask the server's "
                "operator to add it to people in [api.oidc], or sign in with the key in your folder, without --account"
            )
            raise RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER)
        return person

    def _claims(self, token: str, nonce: str) -> dict[str, Any]:
        """Check a token (section 3.1.3.7), and return what it claims."""
        from joserfc import jwt  # noqa: PLC0415
        from joserfc.errors import JoseError  # noqa: PLC0415

        ours: jwt.ClaimsOption = {"essential": True, "value": self.client_id}
        registry = jwt.JWTClaimsRegistry(
            leeway=_LEEWAY, iss={"essential": True, "value": self.issuer}, aud=ours, exp={"essential": True},
            iat={"essential": True}, nonce={"essential": True, "value": nonce}, sub={"essential": True},
        )  # fmt: skip
        try:
            decoded = self._decoded(token)
            registry.validate(decoded.claims)
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:
            detail = f"the identity token does not hold ({type(error).__name__}); sign in again"
            raise RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER) from error
        claims = dict(decoded.claims)
        audience = claims["aud"]
        several = isinstance(audience, list) and len(audience) > 1
        if (several or "azp" in claims) and claims.get("azp") != self.client_id:
            detail = "the identity token was issued for another program; sign in again"
            raise RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER)
        return claims

    def _decoded(self, token: str) -> Any:  # noqa: ANN401 - joserfc's
        from joserfc import jwt  # noqa: PLC0415
        from joserfc.errors import BadSignatureError, InvalidKeyIdError  # noqa: PLC0415

        try:
            return jwt.decode(token, self._key_set(_KEYS_SECONDS), algorithms=ALGORITHMS)
        except (BadSignatureError, InvalidKeyIdError):  # the provider may have new keys
            return jwt.decode(token, self._key_set(_RETRY_SECONDS), algorithms=ALGORITHMS)

    def _key_set(self, oldest: float) -> KeySet:
        from joserfc.errors import JoseError  # noqa: PLC0415
        from joserfc.jwk import KeySet  # noqa: PLC0415

        with self._turn:
            if time.monotonic() > self._fetched + (oldest if self._keys else _PAUSE_SECONDS):
                try:
                    with httpx.Client(
                        verify=self._context, proxy=self._proxy, trust_env=False, timeout=_SECONDS
                    ) as client:
                        described = _fetched(client, f"{self.issuer}/.well-known/openid-configuration")
                        keys = described.get("jwks_uri") if described.get("issuer") == self.issuer else ""
                        self._keys = KeySet.import_key_set(_fetched(client, str(keys)))  # type: ignore[arg-type]
                except (httpx.HTTPError, httpx.InvalidURL, MalformedError, JoseError, ValueError, TypeError, KeyError,
                        RecursionError) as error:  # fmt: skip
                    log.warning("%s does not give its keys: %s", self.issuer, quoted(str(error) or repr(error)))
                self._fetched = time.monotonic()
            if self._keys is None:
                detail = f"{self.issuer} cannot be reached from the server, or gives no keys; try again later"
                raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "30"})
            return self._keys


def _fetched(client: httpx.Client, url: str) -> dict[str, Any]:
    """Fetch a JSON object over TLS.

    Raises:
        MalformedError: if it is none, or too large.
    """
    if not url.startswith("https://"):
        msg = "it names an address without TLS"
        raise MalformedError(msg)
    data = b""
    with client.stream("GET", url, headers={"Accept": "application/json", "Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        if response.status_code != HTTPStatus.OK:
            msg = f"it answers {response.status_code}"
            raise MalformedError(msg)
        for part in response.iter_raw():
            data += part
            if len(data) > _LARGEST:
                msg = "it answers at too great length"
                raise MalformedError(msg)
    value = json.loads(data)
    if not isinstance(value, dict):
        msg = "it answers no object"
        raise MalformedError(msg)
    return value


def _context(settings: Accounts, folder: Path) -> ssl.SSLContext:
    if settings.ca_bundle is None:
        return ssl.create_default_context()
    path = folder / settings.ca_bundle
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        msg = f"{path}: not a readable PEM file of certificates; correct ca_bundle in [api.oidc] of consortium.toml"
        raise ConfigError(msg) from error
