"""Keep a site's roster and certificate current while its agent runs, from the server, whose word is checked."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from client.joining import check_offered, take_roster
from client.line_checks import compare_clocks
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, MalformedError, ProtocolError
from privacy.failures import sentence
from privacy.storage import write_atomically
from transport.diagnosis import Worrying, days_left
from transport.pki import check_renewed, load_certificate, read_certificate, renewal_is_due

if TYPE_CHECKING:
    from client.exchange import Exchange
    from client.site import Site

log = logging.getLogger("cloister.agent")

_DAY, _HOUR = 86_400.0, 3_600.0  # seconds


class Upkeep:
    """Looks after the dates of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._warned = self._asked = float("-inf")
        self._compared = False  # whether the server's roster was seen, even an older one

    def look(self, exchange: Exchange) -> None:
        """Take a newer roster or certificate, if the server has one; warn once a day of what expires soon.

        Once a day, too, the kept steps of runs that have expired are deleted.

        Raises:
            UnreachableError: if the server does not answer.
            AuthenticityError: if the server does not know this site.
        """
        self._take_roster(exchange)
        self._renew(exchange)
        if time.monotonic() > self._warned + _DAY:
            self._warned = time.monotonic()
            self._warn()
            self._compare_clocks(exchange)
            self._site.forget_steps()

    def _take_roster(self, exchange: Exchange) -> None:
        site, place = self._site, self._site.place
        data = exchange.roster(site.roster.version if self._compared else 0)
        self._compared = True
        if data is None:
            return
        try:
            roster = check_offered(place.folder, place.settings.keys, site.name, data)
            if roster.version == site.roster.version:
                return
            roster = take_roster(place.folder, place.settings.keys, site.name, data)
        except (AuthenticityError, MalformedError, ProtocolError, OSError) as error:
            log.warning("kept roster %d: %s", site.roster.version, sentence(error))
            return
        site.use_roster(roster)
        log.info("took roster %d, of %d sites", roster.version, len(roster.members))

    def _renew(self, exchange: Exchange) -> None:
        """Ask for a new certificate once two thirds of this one's life are over, at most once an hour."""
        files = self._site.place.tls
        old = read_certificate(files.certificate)
        if not renewal_is_due(old) or time.monotonic() < self._asked + _HOUR:
            return
        self._asked = time.monotonic()
        data = exchange.renewed_certificate()
        if data is None:
            log.info("this site's certificate waits for the coordinator to renew it")
            return
        try:
            new = load_certificate(data, "the server's answer")
            check_renewed(new, old, read_certificate(files.authority))
            write_atomically(files.certificate, data)
        except (AuthenticityError, KeyFileError, OSError) as error:
            log.warning("kept the certificate, as the server's cannot be taken: %s", sentence(error))
            return
        log.info("renewed this site's certificate, until %s", f"{new.not_valid_after_utc:%Y-%m-%d}")

    def _compare_clocks(self, exchange: Exchange) -> None:
        sent = time.time()
        if (measured := exchange.measure()) is None:
            return
        there, seconds = measured
        try:
            compare_clocks(self._site.name, sent + seconds / 2, there, seconds / 2)
        except (Worrying, ProtocolError) as warning:
            log.warning("%s", warning)

    def _warn(self) -> None:
        certificate = read_certificate(self._site.place.tls.certificate)
        ends = {"certificate": certificate.not_valid_after_utc.timestamp(), "roster": self._site.roster.expires}
        try:
            days_left(ends)
        except (Worrying, CloisterError) as warning:
            log.warning("%s", sentence(warning) if isinstance(warning, CloisterError) else warning)
