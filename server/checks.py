"""Everything about a server that can be checked before agents depend on it: `cloister check --server`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from privacy.storage import set_aside
from server.hub.listening import check_free
from server.joining.requests import Requests
from server.settings import ServerFolder, read_consortium
from transport.address import read_address
from transport.diagnosis import check_private, days_left, findings
from transport.pki import check_server_certificate, read_certificate, read_tls_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transport.diagnosis import Finding


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
        ("port", partial(_port, place.settings.listen)),
        *([("joining", partial(_joining, place))] if place.settings.joining else []),
        *([("signature", partial(_signature, place))] if place.settings.signature else []),
        ("disk", partial(_disk, place)),
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


def _port(listen: str) -> str:
    check_free(read_address(listen, listening=True))
    return f"{listen} is free"


def _joining(place: ServerFolder) -> str:
    """Check the joining port, and that the coordinator's folder, if it is here, writes the server's roster."""
    Requests(place)
    joining = place.settings.joining
    assert joining is not None  # noqa: S101 - only then this check is made
    how = "sites are answered at once" if joining.authority else "sites wait for the coordinator"
    return f"{_port(joining.listen)}; {how}"


def _signature(place: ServerFolder) -> str:
    signature = place.settings.signature
    assert signature is not None  # noqa: S101 - only then this check is made
    return f"{_port(signature.listen)}, for sites whose TLS is ended on the way"


def _disk(place: ServerFolder) -> str:
    probe = place.folder / place.settings.runs / ".space"
    set_aside(probe, 1)
    probe.unlink()
    return f"{probe.parent} can be written"
