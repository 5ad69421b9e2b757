"""What is kept of invitations: a record at the coordinator, and one at the server, which recognises who was invited."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.errors import AuthenticityError, KeyFileError
from privacy.run.invitation import read_record, record_name
from privacy.storage import read_file, write_atomically
from server.protection import INVITATIONS, REQUESTS

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.invitation import InvitationRecord

log = logging.getLogger("cloister.coordinator")


@dataclass(frozen=True)
class Invitations:
    """A coordinator's invitations. Both copies of a record change together."""

    coordinator: Path
    server: Path

    def keep(self, record: InvitationRecord) -> None:
        """Keep what verifies a request."""
        for folder in (self.coordinator, self.server):
            write_atomically(folder / INVITATIONS / record.file_name, record.to_bytes())

    def find(self, number: str) -> InvitationRecord:
        """Return the record with a number.

        Raises:
            AuthenticityError: if there is none.
            KeyFileError: if it is damaged.
        """
        path = self.coordinator / INVITATIONS / record_name(number)
        try:
            return read_record(read_file(path), str(path))
        except FileNotFoundError as error:
            msg = (
                "no invitation of this consortium belongs to this request, or it was withdrawn; invite whoever asks: "
                "cloister invite"
            )
            raise AuthenticityError(msg) from error

    def mark_used(self, record: InvitationRecord, signing_key: str) -> None:
        """Note which key joined with an invitation."""
        self.keep(replace(record, used=signing_key))

    def withdraw(self, name: str) -> int:
        """Delete a name's unused invitations, and what was asked with them; return how many there were."""
        count = 0
        for path in sorted((self.coordinator / INVITATIONS).glob("*.json")):
            try:
                record = read_record(read_file(path), str(path))
            except KeyFileError as error:  # nobody can join with it
                log.warning("%s", error)
                continue
            if record.name == name and record.used is None:
                count += 1
                for folder in (self.server, self.coordinator):
                    (folder / INVITATIONS / path.name).unlink(missing_ok=True)
                (self.server / REQUESTS / path.stem).unlink(missing_ok=True)
        return count
