"""What the server does with a request to join: keep it for the coordinator, or answer it at once.

The server keeps, beside its roster, a record of every invitation, one request for each, and the welcomes that answer
them. With the coordinator's folder on its machine it approves requests itself; otherwise `cloister roster approve`
does.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, ConfigError
from privacy.failures import sentence
from privacy.run.enrolment import open_request
from privacy.run.invitation import number_of_proof, read_record, record_name
from privacy.storage import read_file, write_atomically
from server.coordinator import Coordinator
from server.protection import INVITATIONS, REQUESTS, WELCOMES
from transport.joining import LARGEST_SENTENCE, Answer, Outcome, Standing, State

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.invitation import InvitationRecord
    from server.settings import ServerFolder


log = logging.getLogger("cloister.joining")


class Requests:
    """Answers requests, one at a time."""

    def __init__(self, place: ServerFolder) -> None:
        """Open the server's folder, and the coordinator's if the settings name it.

        Raises:
            CloisterError: if the coordinator's folder cannot be used, or writes another roster than the server reads.
        """
        roster = place.folder / place.settings.roster
        self._folder, self._turn = roster.parent, Lock()
        authority = place.settings.joining.authority if place.settings.joining else None
        self._coordinator = Coordinator(place.folder / authority) if authority else None
        if self._coordinator and self._coordinator.roster_path.resolve() != roster.resolve():
            msg = (
                f"{self._coordinator.folder} writes {self._coordinator.roster_path}, and the server reads {roster}; "
                "let `roster` in coordinator.toml name the server's"
            )
            raise ConfigError(msg)

    def standing(self, proof: bytes) -> tuple[Standing, InvitationRecord | None]:
        """Return the state of the invitation that a proof belongs to, and its record if a request may follow."""
        record = self._record(proof)
        if record is None:
            return Standing(State.UNKNOWN), None
        if record.used is None and record.expires < time.time():
            return Standing(State.EXPIRED), None
        return Standing(State.OPEN, bytes.fromhex(record.used) if record.used else bytes(32)), record

    def _record(self, proof: bytes) -> InvitationRecord | None:
        """Return the record of an invitation; it is used as soon as a request was kept."""
        path = self._folder / INVITATIONS / record_name(number_of_proof(proof))
        try:
            record = read_record(read_file(path), str(path))
        except FileNotFoundError:
            return None
        if not record.proved_by(proof):
            return None
        if record.used is None and (kept := self._kept(self._path(REQUESTS, record))):
            return replace(record, used=open_request(kept, record).signing_key)
        return record

    def answer(self, record: InvitationRecord, data: bytes) -> Answer:
        """Answer a request that came with a proof of this invitation."""
        try:
            with self._turn:
                return self._answer(record, data)
        except (CloisterError, OSError) as error:
            if isinstance(error, CloisterError) and error.may_leave_site:
                return Answer(Outcome.REFUSED, str(error).encode()[:LARGEST_SENTENCE])
            log.warning("the request of %s could not be answered: %s", record.name, sentence(error))
            text = "the server cannot answer now; tell the coordinator, who finds the reason in its log, and try again"
            return Answer(Outcome.REFUSED, text.encode())

    def _answer(self, record: InvitationRecord, data: bytes) -> Answer:
        request, path = open_request(data, record), self._path(REQUESTS, record)
        before = self._kept(path)
        used = open_request(before, record).signing_key if before else record.used
        replace(record, used=used).check_open(request.signing_key)
        if before is None:
            write_atomically(path, data)
        if self._coordinator is not None:
            approval = self._coordinator.approve([data])[1][0]
            self._coordinator.leave_at_server(approval)
            return Answer(Outcome.WELCOME, approval.welcome)
        welcome = self._kept(self._path(WELCOMES, record))
        return Answer(Outcome.WELCOME, welcome) if welcome else Answer(Outcome.KEPT)

    def _path(self, folder: str, record: InvitationRecord) -> Path:
        return self._folder / folder / record.number[:32]

    @staticmethod
    def _kept(path: Path) -> bytes | None:
        try:
            return read_file(path)
        except FileNotFoundError:
            return None


def log_answer(answer: Answer, site: str, address: str) -> None:
    """Log what became of a site's request."""
    if answer.outcome is Outcome.REFUSED:
        why = answer.content.decode(errors="replace")
        log.warning("%s asked to join as %s and was refused: %s", address, site, why)
    elif answer.outcome is Outcome.KEPT:
        log.info("%s asks to join; the coordinator approves it with: cloister roster approve", site)
    else:
        log.info("%s has its welcome", site)
