"""Convert the messages of the key ceremony to Flower records and back. See `transport.messages`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from transport.fields import DIGEST, SITE, array_bytes, blobs, check_names, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping


_LARGEST_PAIR = 4096  # bytes of a letter with one secret


def pack_lead(epoch: int) -> RecordDict:
    """Ask a site to make the keys of a new epoch."""
    return RecordDict({"lead": ConfigRecord({"epoch": epoch})})


def read_lead(content: RecordDict) -> int:
    """Return the number of the epoch to make."""
    return field(content, "lead", "epoch", int)


def pack_keys(epoch: int, fingerprint: str, letters: Mapping[str, bytes], pairs: Mapping[str, bytes]) -> RecordDict:
    """Say which keys this site has now, with its mask secrets and, as the leader, a letter for each member."""
    return RecordDict({
        "keys": ConfigRecord({"epoch": epoch, "fingerprint": fingerprint}),
        "letters": blobs(letters),
        "pairs": blobs(pairs),
    })  # fmt: skip


def read_keys(content: RecordDict) -> tuple[int, str]:
    """Return the epoch and fingerprint of a site's keys."""
    epoch, fingerprint = field(content, "keys", "epoch", int), field(content, "keys", "fingerprint", str)
    if epoch < 0 or not re.fullmatch(DIGEST, fingerprint):
        lacks("keys.fingerprint")
    return epoch, fingerprint


def read_letters(content: RecordDict) -> dict[str, bytes]:
    """Return the letters that a leader wrote, by recipient."""
    if not (letters := _read_blobs(content, "letters")):
        lacks("letters")
    return letters


def pack_letter(leader: str, letter: bytes) -> RecordDict:
    """Deliver a leader's letter to a site."""
    return RecordDict({"letter": ConfigRecord({"leader": leader}), "sealed": blobs({"letter": letter})})


def read_letter_from(content: RecordDict) -> tuple[str, bytes]:
    """Return the claimed leader, and its letter."""
    leader = field(content, "letter", "leader", str)
    if not re.fullmatch(SITE, leader):
        lacks("letter.leader")
    return leader, array_bytes(content, "sealed", "letter")


def read_own_pairs(content: RecordDict) -> dict[str, bytes]:
    """Return a site's letters with mask secrets, by recipient."""
    return _read_pairs(content)


def pack_pairs(fingerprint: str, letters: Mapping[str, bytes]) -> RecordDict:
    """Deliver to a site the mask secrets that others made for it under these keys."""
    return RecordDict({"keys": ConfigRecord({"fingerprint": fingerprint}), "pairs": blobs(letters)})


def read_pairs(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    """Return the fingerprint of the keys, and the letters by sender."""
    return field(content, "keys", "fingerprint", str), _read_pairs(content)


def pack_shared(letters: Mapping[str, bytes], names: list[str]) -> RecordDict:
    """Send this site's mask secrets, and the sites with which it now shares one."""
    return RecordDict({"shared": ConfigRecord({"names": names}), "pairs": blobs(letters)})


def read_shared(content: RecordDict) -> list[str]:
    """Return the sites with which a site now shares a secret."""
    names = field(content, "shared", "names", list)
    check_names(names, "shared.names")
    return names


def _read_pairs(content: RecordDict) -> dict[str, bytes]:
    letters = _read_blobs(content, "pairs")
    check_names(list(letters), "pairs")
    if any(len(letter) > _LARGEST_PAIR for letter in letters.values()):
        lacks("pairs")
    return letters


def _read_blobs(content: RecordDict, record: str) -> dict[str, bytes]:
    letters = content.get(record)
    if not isinstance(letters, ArrayRecord):
        lacks(record)
    return {site: array_bytes(content, record, site) for site in letters}
