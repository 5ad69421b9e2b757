"""What the messages of the key ceremony say: protocol types to Flower records and back. See `transport.messages`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from transport.fields import DIGEST, SITE, array_bytes, blob, check_names, field, lacks

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
    """Say which keys this site has now; as the leader, with a letter for each member; and bring secrets of masks."""
    return RecordDict({
        "keys": ConfigRecord({"epoch": epoch, "fingerprint": fingerprint}),
        "letters": _blobs(letters),
        "pairs": _blobs(pairs),
    })  # fmt: skip


def read_keys(content: RecordDict) -> tuple[int, str]:
    """Return epoch and fingerprint of the keys that a site has."""
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
    """Bring a site the letter that a leader wrote to it."""
    return RecordDict({"letter": ConfigRecord({"leader": leader}), "sealed": ArrayRecord({"letter": blob(letter)})})


def read_letter_from(content: RecordDict) -> tuple[str, bytes]:
    """Return who is said to have written a letter, and the letter."""
    leader = field(content, "letter", "leader", str)
    if not re.fullmatch(SITE, leader):
        lacks("letter.leader")
    return leader, array_bytes(content, "sealed", "letter")


def read_own_pairs(content: RecordDict) -> dict[str, bytes]:
    """Return the letters with secrets of masks that a site made, by recipient."""
    return _read_pairs(content)


def pack_pairs(fingerprint: str, letters: Mapping[str, bytes]) -> RecordDict:
    """Bring a site the secrets of masks that others made for it under these keys."""
    return RecordDict({"keys": ConfigRecord({"fingerprint": fingerprint}), "pairs": _blobs(letters)})


def read_pairs(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    """Return the keys' fingerprint, and the letters by sender."""
    return field(content, "keys", "fingerprint", str), _read_pairs(content)


def pack_shared(letters: Mapping[str, bytes], names: list[str]) -> RecordDict:
    """Bring the secrets of masks that this site made, and say with whom it shares one now."""
    return RecordDict({"shared": ConfigRecord({"names": names}), "pairs": _blobs(letters)})


def read_shared(content: RecordDict) -> list[str]:
    """Return with whom a site shares a secret now."""
    names = field(content, "shared", "names", list)
    check_names(names, "shared.names")
    return names


def _blobs(letters: Mapping[str, bytes]) -> ArrayRecord:
    return ArrayRecord({site: blob(letter) for site, letter in letters.items()})


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
