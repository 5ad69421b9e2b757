"""Everything about a server that can be checked before agents depend on it: `cloister check --server`."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import sys
from errno import EADDRINUSE
from functools import partial
from typing import TYPE_CHECKING

from cryptography import x509

from privacy.errors import StorageError, UnreachableError
from privacy.storage import set_aside
from server.hub.listening import check_free
from server.joining.requests import Requests
from server.settings import ServerFolder, read_consortium
from transport.address import Address, read_address
from transport.diagnosis import Worrying, check_private, days_left, findings
from transport.dialling import places
from transport.pki import check_server_certificate, public_key_digest, read_certificate, read_tls_key
from transport.presented import certificate_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transport.diagnosis import Finding

_ROOM = 256 << 20  # bytes that should be free for a run's sums
_SECONDS = 2.0  # to see who has a port
_ANY = ("0.0.0.0", "::")  # noqa: S104 - to recognise them
_UNSYNCHRONISED = 5  # TIME_ERROR in adjtimex(2)


def check_server(path: Path) -> Iterator[Finding]:
    """Check a server, given `consortium.toml` or the folder that holds it; yield what each check found.

    Raises:
        ConfigError: if there is no usable `consortium.toml`.
    """
    place = read_consortium(path)
    yield from findings([
        ("keys", partial(_keys, place)),
        ("roster", partial(_roster, place)),
        ("validity", partial(_validity, place)),
        ("name", partial(_name, place)),
        ("port", partial(_port, place, place.settings.listen)),
        *([("joining", partial(_joining, place))] if place.settings.joining else []),
        *([("signature", partial(_signature, place))] if place.settings.signature else []),
        ("disk", partial(_disk, place)),
        ("store", partial(_store, place)),
        ("clock", _clock),
    ])  # fmt: skip


def _keys(place: ServerFolder) -> str:
    read_tls_key(place.tls.key)
    check_private(place.tls.key)
    check_server_certificate(place.tls.certificate, place.tls.authority)
    return f"{place.tls.certificate.name} was issued by this consortium's authority"


def _roster(place: ServerFolder) -> str:
    roster = place.roster()
    return f"roster {roster.version} of {roster.consortium} has {len(roster.members)} sites"


def _validity(place: ServerFolder) -> str:
    certificate = read_certificate(place.tls.certificate).not_valid_after_utc.timestamp()
    return days_left({"roster": place.roster().expires, "certificate": certificate})


def _name(place: ServerFolder) -> str:
    """Resolve the name that agents dial, and say which of its addresses are this machine's."""
    certificate = read_certificate(place.tls.certificate)
    (name,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    host, port = str(name.value), read_address(place.settings.listen, listening=True).port
    try:
        addresses = dict.fromkeys((family, str(found[0])) for family, found in places(Address(host, port)))
    except OSError as error:
        msg = (
            f"{host}, the name in the server's certificate, cannot be resolved here "
            f"({(error.strerror or str(error)).lower()}); sites dial it: have it added to the DNS that they use"
        )
        raise Worrying(msg) from error
    here = [address for family, address in addresses if _is_here(family, address)]
    away = [address for _, address in addresses if address not in here]
    text = ", ".join([*(f"{address}, this machine" for address in here), *away])
    if here:
        return f"{host} is {text}"
    msg = f"{host} is {text}, not this machine: whatever has that address must pass TCP on to it, with TLS untouched"
    raise Worrying(msg)


def _is_here(family: socket.AddressFamily, address: str) -> bool:
    """Return whether an address is one of this machine's."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _port(place: ServerFolder, listen: str) -> str:
    """Check that a port is free, or that this very server listens on it."""
    address = read_address(listen, listening=True)
    try:
        check_free(address)
    except UnreachableError as error:
        if not (isinstance(error.__cause__, OSError) and error.__cause__.errno == EADDRINUSE):
            raise
        who = certificate_at(Address("localhost" if address.host in _ANY else address.host, address.port), _SECONDS)
        if who is None or public_key_digest(who) != public_key_digest(read_certificate(place.tls.certificate)):
            raise
        return f"{listen} is in use by this server, which is running"
    return f"{listen} is free"


def _joining(place: ServerFolder) -> str:
    """Check the joining port, and that the coordinator's folder, if it is here, writes the server's roster."""
    Requests(place)
    joining = place.settings.joining
    assert joining is not None  # noqa: S101 - only then this check is made
    how = "sites are answered at once" if joining.authority else "sites wait for the coordinator"
    return f"{_port(place, joining.listen)}; {how}"


def _signature(place: ServerFolder) -> str:
    signature = place.settings.signature
    assert signature is not None  # noqa: S101 - only then this check is made
    return f"{_port(place, signature.listen)}, for sites whose TLS is ended on the way"


def _store(place: ServerFolder) -> str:
    from server.store.store import Store  # noqa: PLC0415 - SQLAlchemy takes a while to import

    with Store.open(place) as store:
        waiting = len(store.runs(status="waiting"))
        return f"{store.database.place} can be used; runs that wait: {waiting}"


def _disk(place: ServerFolder) -> str:
    probe = place.folder / f".space-{os.getpid()}"
    set_aside(probe, 1)
    probe.unlink()
    free = shutil.disk_usage(place.folder).free
    if free < _ROOM:
        msg = f"{place.folder}: only {free >> 20} MB are free on its disk; make room for sums and records of runs"
        raise StorageError(msg)
    return f"{place.folder} can be written; {free / 1e9:.1f} GB free"


def _clock() -> str:
    """Ask the system whether a time server keeps its clock right."""
    if not sys.platform.startswith("linux"):
        return "this system does not say whether its clock is kept right; sites compare theirs with it"
    if ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(1024)) == _UNSYNCHRONISED:  # zeros: only read
        msg = (
            "the system says that no time server sets this clock; have it set by NTP: agents whose clocks differ by "
            "more than 300 s take part in no run"
        )
        raise Worrying(msg)
    return "the system says that a time server keeps this clock right"
