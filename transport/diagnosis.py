"""Look for what stands in the way of a site or a server, one check at a time, and say what to do about it."""

from __future__ import annotations

import socket
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from privacy.errors import AuthenticityError, CloisterError, KeyFileError, UnreachableError
from privacy.failures import sentence
from transport.address import read_address
from transport.channel import probe, probe_ended
from transport.dialling import cause, dial, places
from transport.presented import issuers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from transport.channel import TlsFiles
    from transport.dialling import Place
    from transport.proxies import Proxy

State = Literal["ok", "warning", "failed"]

SOON_DAYS = 14
"""A roster or certificate that expires sooner is worth a warning."""

_SECONDS = 4.0  # for one check
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
    candidates = _places(server)
    with ThreadPoolExecutor(len(candidates)) as threads:
        reached = list(threads.map(_time, candidates))
    times = {str(place[0]): taken for (_, place), taken in zip(candidates, reached, strict=True)}
    good = {address: taken for address, taken in times.items() if isinstance(taken, float)}
    dead = "; ".join(f"{address}: {cause(why)}" for address, why in times.items() if isinstance(why, OSError))
    if not good:
        msg = (
            f"nothing at {server} accepts a connection ({dead}); if your network lets connections out through a "
            "proxy only, name it: https_proxy in the environment, or proxy in [network] of site.toml"
        )
        raise UnreachableError(msg)
    text = ", ".join(f"{address} in {1000 * seconds:.1f} ms" for address, seconds in good.items())
    if dead:
        msg = f"connected to {text}, but not to all ({dead}); have the dead address removed from the name"
        raise Worrying(msg)
    return f"connected to {text}"


def _time(candidate: Place) -> float | OSError:
    """Connect to an address; return the seconds that it took, or what went wrong."""
    (family, place), start = candidate, time.perf_counter()
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS / 2)
            connection.connect(place)
    except OSError as error:
        return error
    return time.perf_counter() - start


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
    probe(server, files, _SECONDS, proxy)
    return "server and site accept each other's certificates"


def check_ended_tls(server: str, ca_bundle: Path, proxy: Proxy | None = None) -> str:
    """Make a TLS connection to what ends TLS before the server, and say who issued its certificate.

    Raises:
        CloisterError: if nothing answers there, or nobody in the bundle issued it; names who did.
    """
    names = issuers(probe_ended(server, ca_bundle, _SECONDS, proxy))
    return f"TLS is ended on the way, with a certificate that {names} issued; this site signs in behind it"


def _places(server: str) -> list[Place]:
    address = read_address(server)
    try:
        return places(address)
    except OSError as error:
        msg = f"{address.host}: {cause(error)}"
        raise UnreachableError(msg) from error
