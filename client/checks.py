"""Everything about a site that can be checked before a round depends on it: `cloister check SITE`."""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

from client.identity import check_certificate, check_keys, check_room, check_secrecy
from client.line_checks import LineChecks
from client.settings import SiteFolder, read_site
from privacy.errors import BudgetError, ConfigError
from transport.diagnosis import (
    check_ended_tls,
    check_name,
    check_port,
    check_proxy,
    check_tls,
    days_left,
    findings,
)
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from client.site import Site
    from transport.diagnosis import Finding


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
            ("roster", line.roster),
        ],
        until=("keys", "name", "port", "proxy", "TLS", "signature", "line"),
    )
    tasks = _Tasks(place)
    yield from findings(
        [
            ("disk", partial(check_room, place)),
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
    roster = check_keys(place)
    check_secrecy(place)
    return f"{place.settings.site} is in roster {roster.version} of {roster.consortium} (sites: {len(roster.members)})"


def _validity(place: SiteFolder) -> str:
    check_certificate(place)
    certificate = read_certificate(place.tls.certificate)
    return days_left({"roster": place.roster().expires, "certificate": certificate.not_valid_after_utc.timestamp()})


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
