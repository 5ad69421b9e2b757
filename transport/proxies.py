"""Find the HTTP proxy through which a site has to go, and ask it for a tunnel (CONNECT, RFC 9110, section 9.3.6).

The tunnel carries the same TLS as a direct connection: the proxy sees the server's name and how much passes, nothing
else. A user and a password come from the environment only, and are never shown.
"""

from __future__ import annotations

import ipaddress
import os
import re
import time
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

from privacy.errors import ConfigError, MalformedError, UnreachableError
from privacy.untrusted_text import quoted
from transport.address import Address, read_address, read_host

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

DIRECT = "none"
"""The setting with which a site dials the server itself, whatever the environment says."""

_VARIABLES = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_USER, _PASSWORD = "CLOISTER_PROXY_USER", "CLOISTER_PROXY_PASSWORD"
_SETTING = "the settings"
_PORT = "3128"
_LARGEST_ANSWER = 16 << 10  # bytes of a proxy's answer
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,15})://", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ([^\r\n]*)\r?\n")
_NEEDS_PASSWORD = 407


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy."""

    address: Address
    named_by: str  # the settings or a variable
    authorization: str = field(default="", repr=False)  # the value of its header; empty: none is sent

    def __str__(self) -> str:
        return f"the proxy {self.address} (from {self.named_by})"

    @property
    def headers(self) -> tuple[str, ...]:
        """What to send beside the request for a tunnel: at most one line."""
        return (f"Proxy-Authorization: {self.authorization}",) if self.authorization else ()


def proxy_for(host: str, setting: str | None = None, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy through which a host is reached; None if it is dialled directly.

    A setting counts before the environment. The environment's proxy is not used for this machine itself, nor for what
    `no_proxy` lists.

    Args:
        host: the server's name or address, in canonical form.
        setting: `proxy` in `[network]` of a site's settings.
        environment: the variables of the environment.

    Raises:
        ConfigError: if the proxy is not one that can be used.
    """
    if setting == DIRECT:
        return None
    name, text = (_SETTING, setting) if setting else _named(environment)
    if not text or (name != _SETTING and _bypassed(host, environment)):
        return None
    return _read(text, name, environment)


def check_setting(text: str) -> str:
    """Check what `[network] proxy` says, and return it.

    Raises:
        ValueError: if it is no proxy, or holds a password.
    """
    if text != DIRECT:
        try:
            _read(text, _SETTING, {})
        except ConfigError as error:
            raise ValueError(str(error)) from error
    return text


def _named(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable that names a proxy, and the proxy; both empty if none does."""
    values = ((name, environment.get(name, "").strip()) for name in _VARIABLES)
    return next((pair for pair in values if pair[1]), ("", ""))


def _read(text: str, name: str, environment: Mapping[str, str]) -> Proxy:
    scheme, wrong = _SCHEME.match(text), None
    credentials, _, place = text[scheme.end() if scheme else 0 :].rstrip("/").rpartition("@")
    if scheme and scheme[1].lower() != "http":
        wrong = f"begins with {scheme[0]}, and Cloister can use HTTP proxies only; write http://host:port"
    elif credentials and name == _SETTING:
        wrong = f"must hold no user and no password; set {_USER} and {_PASSWORD} in the agent's environment"
    if wrong:
        msg = f"the proxy from {name} {wrong}"
        raise ConfigError(msg)
    if place.rpartition("]")[2].count(":") == 0:
        place = f"{place}:{_PORT}"
    try:
        address = read_address(place)
    except MalformedError as error:
        msg = f"the proxy from {name} cannot be used: {error}"  # which quotes only what follows the password
        raise ConfigError(msg) from error
    user, _, password = credentials.partition(":")
    user, password = environment.get(_USER) or unquote(user), environment.get(_PASSWORD) or unquote(password)
    if not (user or password):
        return Proxy(address, name)
    return Proxy(address, name, "Basic " + b64encode(f"{user}:{password}".encode()).decode())


def _bypassed(host: str, environment: Mapping[str, str]) -> bool:
    """Return whether a host is this machine, or listed in `no_proxy`: by name, with all names below it, or network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if host == "localhost" or (address and address.is_loopback):
        return True
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return any(_covers(entry.strip().lower(), host, address) for entry in listed.split(",") if entry.strip())


def _covers(entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> bool:
    if entry == "*":
        return True
    if address:
        try:
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
        except ValueError:
            return False
    try:
        name = read_host(entry.lstrip("*").lstrip("."))
    except MalformedError:
        return False
    return host == name or host.endswith(f".{name}")


def open_tunnel(connection: socket.socket, proxy: Proxy, server: Address, seconds: float) -> None:
    """Have a proxy, to which a socket is connected, pass everything that follows on to the server.

    Raises:
        UnreachableError: if it does not; says why, and what to do.
        OSError: if the connection breaks, or the whole answer does not come within `seconds`.
    """
    deadline = time.monotonic() + seconds
    lines = (f"CONNECT {server} HTTP/1.1", f"Host: {server}", *proxy.headers, "", "")
    connection.sendall("\r\n".join(lines).encode())
    answer = b""
    while b"\r\n\r\n" not in answer and b"\n\n" not in answer:
        connection.settimeout(max(1e-3, deadline - time.monotonic()))
        try:
            part = connection.recv(1)  # byte by byte: what follows the answer is the server's
        except ConnectionResetError:
            part = b""
        if not part or len(answer) > _LARGEST_ANSWER:
            break
        answer += part
    connection.settimeout(seconds)
    status = _STATUS.match(answer)
    if status is None:
        msg = f"{proxy} does not answer as an HTTP proxy; check its address and port with your network team"
        raise UnreachableError(msg)
    code = int(status[1])
    if code // 100 != 2:  # noqa: PLR2004 - success
        raise UnreachableError(refused(proxy, server, code, status[2].decode("latin-1")))


def refused(proxy: Proxy, server: Address, code: int, reason: str) -> str:
    """Return what to do about a proxy's refusal, as a sentence."""
    if code == _NEEDS_PASSWORD:
        what = "does not accept this user and password" if proxy.authorization else "asks for a user and a password"
        return (
            f"{proxy} {what} (407); set {_USER} and {_PASSWORD}, or https_proxy=http://user:password@host:port, in the "
            "agent's environment. It must accept the method Basic"
        )
    said = f"{code} {quoted(reason)}" if reason.strip() else str(code)
    if code in {502, 503, 504}:
        return (
            f"{proxy} cannot reach {server} ({said}); check the address, and that the server runs, or have your "
            "network team let the proxy reach it"
        )
    return (
        f"{proxy} does not let this site reach {server} ({said}); have your network team allow CONNECT to it, or, if "
        f'the server can be reached without a proxy, set proxy = "{DIRECT}" in [network] of site.toml'
    )
