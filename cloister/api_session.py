"""A person's session with the API: TLS that only the consortium's server can offer, a token, and what it answers.

The token lies in the person's folder, readable by them only, encrypted if the folder is. It is worth nothing after an
hour, or once the person signs out.
"""

from __future__ import annotations

import json
import ssl
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cloister.signer import read_signer
from privacy.crypto.signing import sign
from privacy.errors import (
    AuthenticityError,
    CloisterError,
    MalformedError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    UnreachableError,
)
from privacy.storage import read_file, write_atomically
from privacy.untrusted_text import plain
from transport.address import Address, read_address
from transport.api import PORT, SESSION_FILE, SIGN_IN, sign_in_payload
from transport.channel import authority_context, not_ours, unaccepted
from transport.dialling import cause
from transport.pki import read_certificate
from transport.proxies import proxy_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cloister.signer import Signer

_TIMES = httpx.Timeout(30.0, connect=10.0)  # seconds; a stream says something every ten
_LARGEST = 64 << 20  # bytes of an answer
_LARGEST_PROBLEM = 64 << 10
_LONGEST = 1000  # characters of a refusal
_SOON = 30.0  # seconds before its end, a session is made anew
_CONTENT = {"Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class _Kept:
    """What the folder remembers."""

    api: str
    token: Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=1000)] = ""
    ends: float = 0.0
    account: bool = False  # whether an organisation vouched: then the key is not used


class ApiSession:
    """One person's session. Not thread-safe."""

    def __init__(self, folder: Path, api: str | None, proxy: str | None) -> None:
        """Take a person's folder, the API's address, and a proxy; nothing is sent yet.

        Raises:
            CloisterError: as `cloister.Client` does.
        """
        self.identity: Signer = read_signer(folder)
        self._file = self.identity.folder / SESSION_FILE
        kept = _read(self._file)
        default = str(Address(read_address(self.identity.server).host, PORT))
        self.api = str(read_address(api)) if api else (kept.api if kept else default)
        self._kept = kept if kept and kept.api == self.api else _Kept(self.api)
        authority = read_certificate(self.identity.authority)
        self._authority = authority.fingerprint(hashes.SHA256()).hex()
        host = read_address(self.api).host
        found = proxy_for(host, proxy)
        headers = {"Proxy-Authorization": found.authorization} if found and found.authorization else None
        self._http = httpx.Client(
            base_url=f"https://{self.api}",
            verify=authority_context(authority.public_bytes(Encoding.DER)),
            proxy=httpx.Proxy(f"http://{found.address}", headers=headers) if found else None,
            trust_env=False,
            timeout=_TIMES,
            headers={"Accept-Encoding": "identity"},
        )

    @property
    def token(self) -> str:
        """The session's token; empty if there is none."""
        return self._kept.token

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        json: object = None,
        content: bytes | None = None,
    ) -> bytes:
        """Make a request as this person, and return what it answers; sign in first, if need be.

        Raises:
            CloisterError: if the server cannot be reached, is another, or refuses.
        """
        headers = _CONTENT if content is not None else None
        request = {"params": params, "json": json, "content": content, "headers": headers}
        return b"".join(self._signed_in(method, path, request))

    def stream(self, path: str, params: Mapping[str, Any]) -> Iterator[bytes]:
        """Make a request as this person, and return its answer as it comes, which never ends by itself.

        Raises:
            CloisterError: as `ask` does.
        """
        return self._signed_in("GET", path, {"params": params}, largest=None)

    def sign_in(self, *, account: bool = False) -> None:
        """Begin a new session.

        Raises:
            CloisterError: as `ask` does; also if the server is another consortium's.
        """
        asked = {} if account else {"person": self.identity.name}
        challenge = self._object(self._answer("POST", "/v1/challenges", {"json": asked}))
        if challenge.get("authority") != self._authority:
            msg = f"{self.api} is the server of another consortium; check its address with the coordinator"
            raise AuthenticityError(msg)
        nonce, consortium = str(challenge.get("challenge")), str(challenge.get("consortium"))
        if account:
            from cloister.browser_login import identity_token  # noqa: PLC0415 - few need it

            body = {"challenge": nonce, "id_token": identity_token(challenge.get("oidc"), nonce)}
            answer = self._answer("POST", "/v1/sessions/oidc", {"json": body})
        else:
            name, host = self.identity.name, read_address(self.api).host
            signed = sign_in_payload(
                authority=self._authority, consortium=consortium, host=host, challenge=nonce, person=name
            )
            signature = sign(self.identity.key, SIGN_IN, signed).hex()
            body = {"person": name, "challenge": nonce, "host": host, "signature": signature}
            answer = self._answer("POST", "/v1/sessions", {"json": body})
        session = self._object(answer)
        try:
            fields = {"api": self.api, "token": session.get("token"), "ends": session.get("ends"), "account": account}
            self._keep(TypeAdapter(_Kept).validate_python(fields))
        except ValidationError:
            self._unfit()

    def sign_out(self) -> None:
        """End the session, at the server first.

        Raises:
            CloisterError: as `ask` does.
        """
        if self._kept.token:
            with suppress(_SignedOutError):  # it has ended already
                self._answer("DELETE", "/v1/sessions/current", {}, token=True)
        self._keep(_Kept(self.api))

    def _signed_in(
        self, method: str, path: str, request: dict[str, Any], largest: int | None = _LARGEST
    ) -> Iterator[bytes]:
        fresh = not self._kept.token or self._kept.ends < time.time() + _SOON
        if fresh:
            self._sign_in_again()
        try:
            yield from self._parts(method, path, request, token=True, largest=largest)
        except _SignedOutError:
            if fresh:
                raise
            self._sign_in_again()
            yield from self._parts(method, path, request, token=True, largest=largest)

    def _sign_in_again(self) -> None:
        if self._kept.account:
            msg = f"your session at {self.api} has ended; sign in again: cloister login --account"
            raise _SignedOutError(msg)
        self.sign_in()

    def _answer(self, method: str, path: str, request: dict[str, Any], *, token: bool = False) -> bytes:
        return b"".join(self._parts(method, path, request, token=token))

    def _parts(
        self, method: str, path: str, request: dict[str, Any], *, token: bool = False, largest: int | None = _LARGEST
    ) -> Iterator[bytes]:
        """Make a request, and return its answer in parts.

        Raises:
            CloisterError: as `ask` does.
        """
        headers: dict[str, str] = dict(request.get("headers") or {})
        if token:
            headers["Authorization"] = f"Bearer {self._kept.token}"
        try:
            asked: Any = request | {"headers": headers}
            with self._http.stream(method, path, **asked) as response:
                if not response.is_success:
                    raise self._refusal(response)
                size = 0
                for part in response.iter_raw():
                    size += len(part)
                    if largest is not None and size > largest:
                        msg = f"{self.api} answers with more than {largest >> 20} MiB; tell its operator"
                        raise MalformedError(msg)
                    yield part
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self._unreached(error) from error

    def _refusal(self, response: httpx.Response) -> CloisterError:
        """Return a problem that the server answered with (RFC 9457), as the error that it is."""
        data = b""
        for part in response.iter_raw():
            data += part
            if len(data) > _LARGEST_PROBLEM:
                break
        try:
            detail = json.loads(data)["detail"]
        except (ValueError, TypeError, KeyError, RecursionError):
            detail = "no reason given"
        text = f"{self.api}: {plain(str(detail), _LONGEST)}"
        return _ERRORS.get(response.status_code, UnreachableError)(text)

    def _unreached(self, error: Exception) -> CloisterError:
        """Return why a request did not get through, as the error that it is."""
        inner: BaseException | None = error
        while inner is not None:
            if isinstance(inner, ssl.SSLCertVerificationError):
                return AuthenticityError(unaccepted(self.api, str(self.identity.authority), inner))
            if isinstance(inner, ssl.SSLError):
                return UnreachableError(not_ours(self.api, "a Cloister server", inner))
            if isinstance(inner, OSError):
                advice = "`--api` names another address, and the server needs `[api]` in consortium.toml"
                return UnreachableError(f"cannot reach the API at {self.api}: {cause(inner)}; {advice}")
            inner = inner.__cause__ or inner.__context__
        said = plain(str(error)) or type(error).__name__
        return UnreachableError(
            f"the connection to the API at {self.api} was lost ({said}); try again, and if that does not help, "
            "check whether this is the API's port"
        )

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._unfit()
        return value

    def _unfit(self) -> NoReturn:
        msg = f"{self.api} answers in a form that this version of Cloister does not know; install the server's version"
        raise MalformedError(msg)

    def _keep(self, kept: _Kept) -> None:
        self._kept = kept
        fields = {"api": kept.api, "token": kept.token, "ends": kept.ends, "account": kept.account}
        write_atomically(self._file, json.dumps(fields).encode() + b"\n")


class _SignedOutError(AuthenticityError):
    """A session has ended."""


_ERRORS: dict[int, type[CloisterError]] = {
    HTTPStatus.BAD_REQUEST: MalformedError,
    HTTPStatus.UNAUTHORIZED: _SignedOutError,
    HTTPStatus.FORBIDDEN: RefusedError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.METHOD_NOT_ALLOWED: ProtocolError,
    HTTPStatus.CONFLICT: RefusedError,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: RefusedError,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: ProtocolError,
    HTTPStatus.UNPROCESSABLE_ENTITY: RefusedError,
}
"""What a status means to a client; all others may pass."""


def _read(path: Path) -> _Kept | None:
    """Return what the folder remembers; None if nothing, or nothing that can be used."""
    try:
        kept = TypeAdapter(_Kept).validate_json(read_file(path))
        read_address(kept.api)
    except (OSError, ValidationError, MalformedError):
        return None
    return kept
