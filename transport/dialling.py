"""Open a connection to the first address of a server that answers, through a proxy if there is one.

A name may have several addresses, some of which are dead: one attempt after another is started, without waiting for
those before it to fail (after RFC 8305, "Happy Eyeballs").
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from errno import EADDRNOTAVAIL, EAFNOSUPPORT, EHOSTUNREACH, EINPROGRESS, ENETUNREACH, EWOULDBLOCK
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from privacy.errors import UnreachableError
from transport.proxies import open_tunnel

if TYPE_CHECKING:
    from transport.address import Address
    from transport.proxies import Proxy

_NEXT_SECONDS = 0.25  # until the next address is tried too
_NAME_SECONDS = 3.0  # to resolve a name; the system's own limit may be a minute
_UNDER_WAY = {0, EINPROGRESS, EWOULDBLOCK}
_NO_ROUTE = {ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT}  # as where there is no IPv6

Place = tuple[socket.AddressFamily, Any]
"""A family of addresses, and an address of it as `getaddrinfo` gives it."""


def places(address: Address, seconds: float = _NAME_SECONDS) -> list[Place]:
    """Resolve an address; families alternate, so that one of them that leads nowhere costs little.

    Raises:
        OSError: if the name has no address; `socket.gaierror` if none is known within `seconds`.
    """
    known: list[Place] = list(dict.fromkeys((family, place) for family, *_, place in _resolved(address, seconds)))
    first = [place for place in known if place[0] == known[0][0]]
    others = [place for place in known if place[0] != known[0][0]]
    mixed = [place for pair in zip(first, others, strict=False) for place in pair]
    return mixed + first[len(others) :] + others[len(first) :]


def _resolved(address: Address, seconds: float) -> list[Any]:
    answers = SimpleQueue[list[Any] | OSError]()

    def ask() -> None:  # in a thread, since nothing ends a question to name servers that do not answer
        try:
            answers.put(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
        except OSError as error:
            answers.put(error)

    Thread(target=ask, name="names", daemon=True).start()
    try:
        answer = answers.get(timeout=min(seconds, _NAME_SECONDS))
    except Empty:
        raise socket.gaierror(socket.EAI_AGAIN, "no name server answers") from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def cause(error: OSError) -> str:
    """Say why a connection to a server was not made, and what to do, as the rest of a sentence."""
    system = (error.strerror or str(error) or "no reason given").lower()
    if isinstance(error, socket.gaierror):
        return (
            f"the name cannot be resolved here ({system}); correct it, or ask your network team for its address, or "
            "for the proxy that resolves it"
        )
    if isinstance(error, TimeoutError):
        return "no answer, as behind a firewall that drops packets; have your network team allow this connection"
    if isinstance(error, ConnectionRefusedError):
        return (
            "connection refused: nothing listens at this port; correct the address, or have the coordinator start the "
            "server"
        )
    if error.errno in _NO_ROUTE:
        return (
            f"this machine has no route to it ({system}); ask your network team for one, or the coordinator for an "
            "address of the other kind, IPv4 or IPv6"
        )
    return f"{system}; correct the address, or ask your network team what cuts the connection"


def connect(candidates: list[Place], seconds: float) -> socket.socket:
    """Connect to the first of several addresses that answers; the socket keeps `seconds` as its time-out.

    Raises:
        OSError: if none does in this time: what went wrong with the first that failed.
    """
    deadline, left = time.monotonic() + seconds, list(candidates)
    failure: OSError | None = None
    with selectors.DefaultSelector() as selector:
        try:
            while left or selector.get_map():
                if left:
                    failure = _start(selector, left.pop(0)) or failure
                    if not selector.get_map():
                        continue
                wait = deadline - time.monotonic()
                if wait <= 0:
                    break
                for key, _ in selector.select(min(wait, _NEXT_SECONDS) if left else wait):
                    attempt = key.fileobj
                    assert isinstance(attempt, socket.socket)  # noqa: S101 - what `_start` registered
                    selector.unregister(attempt)
                    if not (code := attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        attempt.settimeout(seconds)
                        return attempt
                    attempt.close()
                    failure = failure or OSError(code, os.strerror(code))
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]  # a socket
    raise failure or TimeoutError("timed out")


def _start(selector: selectors.BaseSelector, candidate: Place) -> OSError | None:
    """Start to connect to an address; return what prevents that at once."""
    family, place = candidate
    try:
        attempt = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return error
    attempt.setblocking(False)  # noqa: FBT003 - socket knows no name for it
    code = attempt.connect_ex(place)
    if code not in _UNDER_WAY:
        attempt.close()
        return OSError(code, os.strerror(code))
    selector.register(attempt, selectors.EVENT_WRITE)
    return None


def left(deadline: float) -> float:
    """Return the seconds that are left until a time of the monotonic clock, as a time-out that a socket takes."""
    return max(1e-3, deadline - time.monotonic())


def dial(server: Address, seconds: float, proxy: Proxy | None = None) -> socket.socket:
    """Connect to a server, through the proxy if one is given.

    Raises:
        UnreachableError: if the proxy is down or refuses; says which, and what to do.
        OSError: if the server is dialled directly and does not answer.
    """
    deadline = time.monotonic() + seconds
    if proxy is None:
        return connect(places(server, seconds), deadline - time.monotonic())
    try:
        connection = connect(places(proxy.address, seconds), deadline - time.monotonic())
        try:
            open_tunnel(connection, proxy, server, left(deadline))
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        msg = f"cannot reach {proxy}: {why}; check its name and port with your network team"
        raise UnreachableError(msg) from error
    return connection
