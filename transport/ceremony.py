"""What the messages of the key ceremony say: protocol types to Flower records and back.

query.lead    number of a new epoch   → its keys' fingerprint, a sealed letter for each member
query.accept  leader, letter          → fingerprint of the keys inside
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from transport.fields import DIGEST, SITE, array_bytes, blob, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping


def pack_lead(epoch: int) -> RecordDict:
    """Ask a site to make the keys of a new epoch."""
    return RecordDict({"lead": ConfigRecord({"epoch": epoch})})


def read_lead(content: RecordDict) -> int:
    """Return the number of the epoch to make."""
    return field(content, "lead", "epoch", int)


def pack_keys(epoch: int, fingerprint: str, letters: Mapping[str, bytes] | None = None) -> RecordDict:
    """Say which keys this site has now; as the leader, with a letter for each member."""
    content = RecordDict({"keys": ConfigRecord({"epoch": epoch, "fingerprint": fingerprint})})
    content["letters"] = ArrayRecord({site: blob(letter) for site, letter in (letters or {}).items()})
    return content


def read_keys(content: RecordDict) -> tuple[int, str]:
    """Return epoch and fingerprint of the keys that a site has."""
    epoch, fingerprint = field(content, "keys", "epoch", int), field(content, "keys", "fingerprint", str)
    if epoch < 0 or not re.fullmatch(DIGEST, fingerprint):
        lacks("keys.fingerprint")
    return epoch, fingerprint


def read_letters(content: RecordDict) -> dict[str, bytes]:
    """Return the letters that a leader wrote, by recipient."""
    letters = content.get("letters")
    if not isinstance(letters, ArrayRecord) or not letters:
        lacks("letters")
    return {site: array_bytes(content, "letters", site) for site in letters}


def pack_letter(leader: str, letter: bytes) -> RecordDict:
    """Bring a site the letter that a leader wrote to it."""
    return RecordDict({"letter": ConfigRecord({"leader": leader}), "sealed": ArrayRecord({"letter": blob(letter)})})


def read_letter_from(content: RecordDict) -> tuple[str, bytes]:
    """Return who is said to have written a letter, and the letter."""
    leader = field(content, "letter", "leader", str)
    if not re.fullmatch(SITE, leader):
        lacks("letter.leader")
    return leader, array_bytes(content, "sealed", "letter")
