"""Look for what stands in the way of a site or a server, one check at a time, and say what to do about it."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from cryptography import x509
from cryptography.x509.oid import NameOID

from privacy.errors import AuthenticityError, CloisterError, KeyFileError, UnreachableError
from privacy.failures import sentence
from privacy.untrusted_text import quoted
from transport.address import read_address
from transport.channel import probe, probe_ended
from transport.dialling import dial, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from transport.channel import TlsFiles
    from transport.dialling import Place
    from transport.proxies import Proxy

State = Literal["ok", "warning", "failed"]

SOON_DAYS = 14
"""A roster or certificate that expires sooner is worth a warning."""

_SECONDS = 4.0  # to connect to one address
_DAY = 86_400.0
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    text: str


class Worrying(Exception):  # noqa: N818 - not an error
    """Something works, but should be looked after; the message says what to do."""


def findings(checks: Iterable[tuple[str, Callable[[], str]]], *, until: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Run checks in order, and yield what each found.

    Args:
        checks: names, and functions that return what they saw. They raise `CloisterError` or `OSError` if something
            stands in the way, or `Worrying`.
        until: checks without which the later ones make no sense; if one fails, the rest is left out.
    """
    for name, examine in checks:
        finding = _find(name, examine)
        yield finding
        if finding.state == "failed" and name in until:
            return


def _find(name: str, examine: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", examine())
    except Worrying as warning:
        return Finding(name, "warning", str(warning))
    except (CloisterError, OSError) as error:
        return Finding(name, "failed", sentence(error))


def check_private(*paths: Path) -> None:
    """Check that nobody but their owner may read files with keys.

    Raises:
        KeyFileError: if others may; says how to change it.
    """
    if sys.platform == "win32":
        return
    for path in paths:
        if path.stat().st_mode & _OTHERS:
            msg = f"{path}: other users of this machine may read it; change that: chmod 600 {path}"
            raise KeyFileError(msg)


def days_left(ends: dict[str, float]) -> str:
    """Say until when something is valid, the soonest first.

    Args:
        ends: by name, seconds since 1970.

    Raises:
        AuthenticityError: if something has expired.
        Worrying: if something expires within `SOON_DAYS`.
    """
    document, end = min(ends.items(), key=lambda pair: pair[1])
    left, date = (end - time.time()) / _DAY, f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d}"
    if left < 0:
        msg = f"the {document} expired on {date}; ask the coordinator for a new one"
        raise AuthenticityError(msg)
    text = f"the {document} is valid until {date}, for {left:.0f} more days"
    if left < SOON_DAYS:
        msg = f"{text}; ask the coordinator for a new one"
        raise Worrying(msg)
    return text


def check_name(server: str) -> str:
    """Resolve the server's name, and say to what.

    Raises:
        UnreachableError: if it does not resolve.
    """
    return ", ".join(dict.fromkeys(str(place[0]) for _, place in _places(server)))


def check_port(server: str) -> str:
    """Connect to every address of the server, and say how long that took.

    Raises:
        UnreachableError: if none answers.
        Worrying: if some do not answer.
    """
    times, dead = {}, {}
    for family, place in _places(server):
        start = time.perf_counter()
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(_SECONDS / 2)
                connection.connect(place)
        except OSError as error:
            dead[str(place[0])] = _why(error)
        else:
            times[str(place[0])] = time.perf_counter() - start
    silent = "; ".join(f"{address}: {why}" for address, why in dead.items())
    if not times:
        msg = (
            f"nothing at {server} accepts a connection ({silent}); if your network lets connections out through a "
            "proxy only, name it: https_proxy in the environment, or proxy in [network] of site.toml"
        )
        raise UnreachableError(msg)
    text = ", ".join(f"{address} in {1000 * seconds:.1f} ms" for address, seconds in times.items())
    if dead:
        msg = f"connected to {text}, but not to {silent}; have the dead address removed from the name"
        raise Worrying(msg)
    return f"connected to {text}"


def check_proxy(server: str, proxy: Proxy) -> str:
    """Have the proxy open a tunnel to the server, and say how long that took.

    Raises:
        UnreachableError: if the proxy is down or refuses; says which, and what to do.
    """
    start = time.perf_counter()
    dial(read_address(server), _SECONDS, proxy).close()
    return f"{proxy} opened a tunnel to {server} in {1000 * (time.perf_counter() - start):.1f} ms"


def check_tls(server: str, files: TlsFiles, proxy: Proxy | None = None) -> str:
    """Make a TLS connection to the server as this site, and say that both accept each other.

    Raises:
        CloisterError: if they do not; names who issued the certificate that arrived, if it is not the consortium's.
    """
    try:
        probe(server, files, _SECONDS, proxy)
    except (AuthenticityError, UnreachableError) as error:
        if isinstance(error, UnreachableError) and not isinstance(error.__cause__, ssl.SSLError):
            raise
        msg = f"{error}{_issuer(server, proxy)}"  # a proxy may not even speak TLS 1.3
        raise type(error)(msg) from error
    return "server and site accept each other's certificates"


def _issuer(server: str, proxy: Proxy | None) -> str:
    """Return who issued the certificate that arrives, as a remark; empty if nobody says."""
    if not (issuer := _issued(server, proxy)):
        return ""
    return (
        f"; it was issued by {issuer}. If that is a proxy of your own network that inspects TLS, have it pass {server} "
        'on untouched, or, if consortium.toml has [signature], set authentication = "signature" in [network] of '
        "site.toml"
    )


def _issued(server: str, proxy: Proxy | None) -> str:
    """Return who issued the certificate that arrives; empty if nobody says."""
    place, context = read_address(server), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only to name who answers; nothing is sent
    try:
        with (
            dial(place, _SECONDS, proxy) as plain,
            context.wrap_socket(plain, server_hostname=place.host) as secured,
        ):
            return _names(x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b""))
    except (CloisterError, OSError, ValueError):
        return ""


def _names(certificate: x509.Certificate) -> str:
    """Return who issued a certificate."""
    names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    names += certificate.issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return ", ".join(quoted(str(name.value)) for name in names)


def check_ended_tls(server: str, ca_bundle: Path, proxy: Proxy | None = None) -> str:
    """Make a TLS connection to what ends TLS before the server, and say who issued its certificate.

    Raises:
        CloisterError: if nothing answers there, or nobody in the bundle issued it; names who did.
    """
    try:
        certificate = probe_ended(server, ca_bundle, _SECONDS, proxy)
    except AuthenticityError as error:
        names = _issued(server, proxy)
        msg = f"{error}; it was issued by {names}" if names else str(error)
        raise AuthenticityError(msg) from error
    return (
        f"TLS is ended on the way, with a certificate that {_names(certificate)} issued; this site signs in behind it"
    )


def _places(server: str) -> list[Place]:
    address = read_address(server)
    try:
        return places(address)
    except OSError as error:
        msg = (
            f"{address.host} cannot be resolved here ({(error.strerror or str(error)).lower()}); check `server` in "
            "site.toml, or ask your network team for its name, or for the proxy that resolves it"
        )
        raise UnreachableError(msg) from error


def _why(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer, as behind a firewall that drops packets; have outgoing connections to this port allowed"
    if isinstance(error, ConnectionRefusedError):
        return "refused: no server runs there, or on another port"
    return (error.strerror or os.strerror(error.errno or 0)).lower()
