"""Parse addresses into one canonical form: `host:port`, where a host is a name, an IPv4 or an IPv6 address.

Libraries disagree on malformed addresses: gRPC takes port 99999 for 34463 and a missing port for 443, and resolvers
take `127.1` for 127.0.0.1.

>>> read_address("Fed.example.org:9440")
Address(host='fed.example.org', port=9440)
>>> str(read_address("[0:0::1]:9440"))
'[::1]:9440'
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from privacy.errors import MalformedError

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"0|[1-9][0-9]{0,4}")
_LONGEST_NAME = 253
_PORTS = 1 << 16


@dataclass(frozen=True)
class Address:
    """A host, without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str, *, listening: bool = False) -> Address:
    """Read `host:port`.

    Args:
        text: the address as written.
        listening: whether a server will listen there; port 0 then means any free port.

    Raises:
        MalformedError: if it is not an address; says why.
    """
    host, colon, port = text.rpartition(":")
    wrong = None
    if "://" in text:
        wrong = f"leave out {text.partition('://')[0]}://"
    elif any(character.isspace() or not character.isprintable() for character in text):
        wrong = "leave out spaces and invisible characters"
    elif not text.isascii():
        wrong = "write a name with other letters in its ASCII form, which starts with xn--"
    elif not host.startswith("[") and ":" in host:
        wrong = "write an IPv6 address in brackets: [::1]:9440"
    elif not colon or not host or host.endswith("]") != host.startswith("["):
        wrong = "write host:port, for example fed.example.org:9440"
    elif not _PORT.fullmatch(port) or not (0 if listening else 1) <= int(port) < _PORTS:
        wrong = f"a port is a number from {0 if listening else 1} to {_PORTS - 1}"
    if wrong:
        msg = f"{text!a} is not an address; {wrong}"
        raise MalformedError(msg)
    return Address(read_host(host), int(port))


def read_host(text: str) -> str:
    """Return the canonical form of a name, an IPv4 address, or an IPv6 address with or without brackets.

    Raises:
        MalformedError: if it is none of these; says why.
    """
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(inner)
    except ValueError:
        address = None
    name, wrong = inner.lower(), None
    if address is not None and (address.version == 6 or inner == text):  # noqa: PLR2004 - an address in brackets is IPv6
        if "%" not in inner:
            return str(address)
        wrong = "an address with a network interface is valid on one machine only; leave out the interface and the %"
    elif inner != text or ":" in text:
        wrong = "write only an IPv6 address in brackets, and a host without port and scheme"
    elif text.endswith("."):
        wrong = "leave out the dot at its end, which certificates do not match"
    elif len(name) > _LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        wrong = (
            "a name has letters a to z, digits, hyphens and dots; write other letters in the ASCII form, which "
            "starts with xn--"
        )
    elif _NUMBER.fullmatch(name.rpartition(".")[2]):
        wrong = "an IPv4 address has four numbers up to 255"
    if wrong:
        msg = f"{text!a} is not a host; {wrong}"
        raise MalformedError(msg)
    return name


def _canonical(text: str, *, listening: bool = False) -> str:
    try:
        return str(read_address(text, listening=listening))
    except MalformedError as error:
        raise ValueError(str(error)) from error


Dialled = Annotated[str, AfterValidator(_canonical)]
"""A setting: an address to dial."""

ListenedOn = Annotated[str, AfterValidator(partial(_canonical, listening=True))]
"""A setting: an address to listen on."""


def network_of(address: str) -> str:
    """Return the network that counts as one with an IP address: where limits are for each address.

    >>> network_of("192.0.2.7"), network_of("::ffff:192.0.2.7"), network_of("2001:db8::5%eth0")
    ('192.0.2.7', '192.0.2.7', '2001:db8::/64')
    """
    place = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(place, ipaddress.IPv6Address) and place.ipv4_mapped is None:
        return str(ipaddress.ip_network((place, 64), strict=False))
    return str(getattr(place, "ipv4_mapped", None) or place)
