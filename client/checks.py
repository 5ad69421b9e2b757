"""Everything about a site that can be checked before a round depends on it: `cloister check SITE`."""

from __future__ import annotations

import shutil
from functools import cached_property, partial
from typing import TYPE_CHECKING

from client.line_checks import LineChecks
from client.settings import SiteFolder, read_site
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import BudgetError, ConfigError, KeyFileError, StorageError
from privacy.storage import read_file, set_aside
from transport.diagnosis import (
    check_ended_tls,
    check_name,
    check_port,
    check_private,
    check_proxy,
    check_tls,
    days_left,
    findings,
)
from transport.pki import key_digest, read_certificate, read_roster, read_signing_key, read_tls_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.site import Site
    from transport.diagnosis import Finding

_ROOM = 256 << 20  # bytes that should be free for models and updates in transit


def check_site(path: Path) -> Iterator[Finding]:
    """Check a site, given its `site.toml` or the folder that holds it; yield what each check found.

    Raises:
        ConfigError: if there is no usable `site.toml`.
    """
    place = read_site(path)
    server, proxy, line = place.settings.server, place.proxy, LineChecks(place)
    way = [("name", partial(check_name, server)), ("port", partial(check_port, server))]
    if proxy:
        way = [("proxy", partial(check_proxy, server, proxy))]
    yield from findings(
        [
            ("keys", partial(_keys, place)),
            ("validity", partial(_validity, place)),
            *way,
            *_authentication(place, line),
            ("line", line.speed),
            ("clock", line.clock),
        ],
        until=("keys", "name", "port", "proxy", "TLS", "signature", "line"),
    )
    tasks = _Tasks(place)
    yield from findings(
        [
            ("disk", partial(_disk, place)),
            ("budget", partial(_budget, place)),
            ("records", tasks.records),
            ("loader", tasks.loader),
            ("memory", tasks.memory),
        ],
        until=("records",),
    )


def _authentication(place: SiteFolder, line: LineChecks) -> list[tuple[str, Callable[[], str]]]:
    """Return how to check that server and site accept each other: by TLS, or behind where it is ended."""
    server, proxy = place.settings.server, place.proxy
    if place.settings.network.authentication == "tls":
        return [("TLS", partial(check_tls, server, place.tls, proxy))]
    return [("TLS", lambda: check_ended_tls(server, place.ca_bundle, proxy)), ("signature", line.signature)]


def _keys(place: SiteFolder) -> str:
    """Check that the site's keys are there, are private, belong together, and are those in the roster."""
    keys = place.settings.keys
    private = [place.path(key) for key in (keys.tls_key, keys.signing_key, keys.sealing_key)]
    for path in private:
        read_file(path)
    check_private(*private)
    roster = read_roster(place.path(keys.roster), place.path(keys.authority))
    member, tls = roster.member(place.settings.site), read_tls_key(private[0]).public_key()
    if read_certificate(place.tls.certificate).public_key() != tls:
        msg = f"{place.tls.certificate} does not belong to {private[0]}; take in the welcome again: cloister join"
        raise KeyFileError(msg)
    listed = member.tls_key, member.signing_key, member.sealing_key
    signing = read_signing_key(private[1]).public_key().public_bytes_raw().hex()
    if listed != (key_digest(tls), signing, SealingKey(read_file(private[2])).public):
        msg = f"roster {roster.version} lists other keys for {member.site}; take in the latest: cloister roster take"
        raise KeyFileError(msg)
    return f"{member.site} is in roster {roster.version} of {roster.consortium} (sites: {len(roster.members)})"


def _validity(place: SiteFolder) -> str:
    keys = place.settings.keys
    roster = read_roster(place.path(keys.roster), place.path(keys.authority))
    certificate = read_certificate(place.tls.certificate)
    return days_left({"roster": roster.expires, "certificate": certificate.not_valid_after_utc.timestamp()})


def _disk(place: SiteFolder) -> str:
    """Check that the site's folder can be written, and has some room."""
    probe = place.folder / "outbox" / ".space"
    set_aside(probe, 1)
    probe.unlink()
    free = shutil.disk_usage(place.folder).free
    if free < _ROOM:
        msg = f"{place.folder}: only {free >> 20} MB are free on its disk; make room for models and updates"
        raise StorageError(msg)
    return f"{free / 1e9:.1f} GB free"


def _budget(place: SiteFolder) -> str:
    """Read the ledger, and check that something of the budget is left."""
    limit = place.settings.limit
    spent = place.ledger.spent(limit.delta)
    if spent >= limit.epsilon:
        msg = f"ε {spent:.2f} of {limit.epsilon:g} is spent; the records' people have no budget left for another run"
        raise BudgetError(msg)
    return f"ε {spent:.2f} of {limit.epsilon:g} is spent at δ {limit.delta:g}"


class _Tasks:
    """Tries the tasks of the policy on the site's records."""

    def __init__(self, place: SiteFolder) -> None:
        self._place = place

    @cached_property
    def _site(self) -> Site:
        from client.site import Site  # noqa: PLC0415 - loads torch

        return Site(self._place)

    def records(self) -> str:
        """Import every task of the policy, try it, and read the records for it."""
        if not self._place.settings.policy.tasks:
            msg = (
                f"{self._place.folder / 'site.toml'}: [policy] lists no tasks, so this site takes part in nothing; "
                "list some"
            )
            raise ConfigError(msg)
        counts = self._site.check_records()
        return ", ".join(f"{count} for {task}" for task, count in counts.items())

    def loader(self) -> str:
        """Say how fast records are read that stay where they are."""
        from client.work.room import reading  # noqa: PLC0415 - loads torch

        return reading(self._site)

    def memory(self) -> str:
        """Check that a step of every task fits in memory."""
        from client.work.room import memory  # noqa: PLC0415 - loads torch

        return memory(self._site)
