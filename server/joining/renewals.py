"""New certificates for members whose present one nears its end: the same key, another date."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from privacy.errors import CloisterError
from privacy.storage import read_file, write_atomically
from server.coordinator import Coordinator
from server.protection import ANSWERS, RENEWALS
from transport.diagnosis import Worrying, days_left
from transport.pki import certificate_pem, check_renewed, load_certificate, read_certificate, renewal_is_due

if TYPE_CHECKING:
    from cryptography import x509

    from privacy.run.roster import Member
    from server.settings import ServerFolder

log = logging.getLogger("cloister.joining")

_DAY = 86_400.0  # seconds


class Renewals:
    """Renews members' certificates and the server's own, at once or with the coordinator's approval."""

    def __init__(self, place: ServerFolder) -> None:
        """Open the server's folder, and the coordinator's if the settings name it.

        Raises:
            CloisterError: if the coordinator's folder cannot be used.
        """
        self._place, self._folder = place, (place.folder / place.settings.roster).parent / RENEWALS
        authority = place.settings.joining.authority if place.settings.joining else None
        self._coordinator = Coordinator(place.folder / authority) if authority else None
        self._ended = threading.Event()

    def certificate(self, member: Member, presented: bytes) -> bytes:
        """Return a newer certificate than the one that a member presents, as PEM; nothing if there is none yet.

        Raises:
            CloisterError: if the certificate cannot be renewed.
        """
        old = load_certificate(presented, f"the certificate of {member.site}")
        if not renewal_is_due(old):
            return b""
        if self._coordinator is not None:
            log.info("the certificate of %s is renewed", member.site)
            return self._coordinator.recertify(member.site, old)
        return self._answer(member.site, old)

    def _answer(self, site: str, old: x509.Certificate) -> bytes:
        """Return what the coordinator certified; otherwise keep the certificate for it."""
        path = self._folder / f"{site}.pem"
        try:
            data = read_file(self._folder / ANSWERS / path.name)
            check_renewed(load_certificate(data, site), old, read_certificate(self._place.tls.authority))
        except (FileNotFoundError, CloisterError):  # none yet, or one from an earlier time
            if not path.exists() or read_file(path) != certificate_pem(old):  # none, or of an earlier key
                write_atomically(path, certificate_pem(old))
                log.warning("the certificate of %s has to be renewed by the coordinator: cloister renew", site)
            return b""
        return data

    def start(self) -> None:
        """Look after the server's own dates, now and once a day."""
        threading.Thread(target=self._look_daily, name="renewals", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look_daily(self) -> None:
        while True:
            try:
                self.look()
            except (CloisterError, OSError) as error:
                log.warning("the server's dates could not be looked after: %s", error)
            if self._ended.wait(_DAY):
                return

    def look(self) -> None:
        """Renew the server's certificate if that is due and the authority is here; warn of what expires soon.

        Raises:
            CloisterError: if the certificate or the roster cannot be read, or has expired.
        """
        certificate = read_certificate(self._place.tls.certificate)
        if self._coordinator is not None and renewal_is_due(certificate):
            self._coordinator.renew_server()
            certificate = read_certificate(self._place.tls.certificate)
            log.info("the server's certificate was renewed")
        ends = {"server's certificate": certificate.not_valid_after_utc.timestamp()}
        ends["roster"] = self._place.roster().expires
        try:
            days_left(ends)
        except Worrying as warning:
            log.warning("%s", warning)
