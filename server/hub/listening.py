"""Listen on an address, or check whether gRPC can, which gives no reason if not."""

from __future__ import annotations

import socket
from dataclasses import replace
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT
from typing import TYPE_CHECKING, Any

from privacy.errors import UnreachableError

if TYPE_CHECKING:
    from transport.address import Address

_CAUSES = {
    EADDRINUSE: "another program uses the port; stop it, or choose another port",
    EACCES: "this user may not use that port; choose one above 1023",
    EADDRNOTAVAIL: "this machine does not have that address; choose one of its own, or 0.0.0.0 for all",
    EAFNOSUPPORT: "this machine does not support that kind of address; choose one of its own, or 0.0.0.0 for all",
}
_ALL = ("0.0.0.0", "::")  # noqa: S104
_BOTH = {"0.0.0.0": _ALL, "::": _ALL, "localhost": ("127.0.0.1", "::1")}  # noqa: S104 - as gRPC understands them
_TRIES = 10  # at finding a port that is free everywhere
_ELSEWHERE = {EADDRNOTAVAIL, EAFNOSUPPORT}


def check_free(address: Address) -> None:
    """Bind the port for a moment, at all addresses of the host.

    Raises:
        UnreachableError: if it is taken at one of them, or none of them is this machine's; says which.
    """
    refusals = [_refusal(family, place) for family, place in _places(address)]
    here = None in refusals
    for refusal in refusals:
        if refusal is not None and not (here and refusal.errno in _ELSEWHERE):
            msg = f"cannot listen on {address}: {_cause(refusal)} (`listen` in consortium.toml)"
            raise UnreachableError(msg) from refusal


def numbered(address: Address) -> Address:
    """Return an address with a port that is free at all addresses of the host, if it leaves the choice to the system.

    gRPC would take the port that is free at the first of them, and listen at that one alone if others have it in use.

    Raises:
        UnreachableError: if no port is free, or none of the host's addresses is this machine's.
    """
    if address.port:
        return address
    for left in reversed(range(_TRIES)):
        check_free(address)
        family, place = next(each for each in _places(address) if _refusal(*each) is None)
        with socket.create_server(place[:2], family=family, dualstack_ipv6=False) as opened:
            chosen = replace(address, port=opened.getsockname()[1])
        try:
            check_free(chosen)
        except UnreachableError:
            if not left:
                raise
        else:
            return chosen
    raise AssertionError


def sockets(address: Address, backlog: int) -> list[socket.socket]:
    """Listen on a port at all addresses of the host that this machine has.

    Raises:
        UnreachableError: if it can listen on none of them.
    """
    listening, port, refusal = list[socket.socket](), address.port, None
    for family, place in _places(address):
        try:
            opened = socket.create_server(
                (place[0], place[1] or port), family=family, backlog=backlog, dualstack_ipv6=False
            )
        except OSError as error:
            refusal = error
        else:
            listening.append(opened)
            port = opened.getsockname()[1]
    if not listening:
        msg = f"cannot listen on {address}: {_cause(refusal)}"
        raise UnreachableError(msg) from refusal
    return listening


def _cause(error: OSError | None) -> str:
    return _CAUSES.get(error.errno or 0, error.strerror or str(error)) if error else "it has no address"


def _places(address: Address) -> list[tuple[socket.AddressFamily, Any]]:
    hosts = _BOTH.get(address.host, (address.host,))
    try:
        return [
            (family, place)
            for host in hosts
            for family, *_, place in socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
        ]
    except OSError as error:
        msg = (
            f"cannot listen on {address}: the name cannot be resolved here "
            f"({(error.strerror or str(error)).lower()}); write one of this machine's addresses (`listen` in "
            "consortium.toml)"
        )
        raise UnreachableError(msg) from error


def _refusal(family: socket.AddressFamily, place: Any) -> OSError | None:  # noqa: ANN401 - as getaddrinfo gives it
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(place)
            listener.listen()
    except OSError as error:
        return error
    return None
