"""Letters that bring keys, and letters that bring secrets of masks, for the golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.crypto.key_epoch import write_letters
from privacy.crypto.pairs import write_pairs
from tests.privacy.consortium import SITES, make_roster, sealing_key, signing_key

if TYPE_CHECKING:
    from privacy.crypto.key_epoch import EpochKeys


def letters(keys: EpochKeys) -> dict[str, object]:
    """Return north's letters to south, and what opens them."""
    roster = make_roster()
    secrets, pairs = write_pairs(keys, roster, "north", signing_key("north"))
    return {
        "sealing_keys": {site: sealing_key(site).to_bytes().hex() for site in SITES},
        "leader": "north",
        "recipient": "south",
        "epoch": keys.epoch,
        "fingerprint": keys.fingerprint,
        "letter": write_letters(keys, roster, "north", signing_key("north"))["south"].decode(),
        "pair_letter": pairs["south"].hex(),
        "pair_secret": secrets["south"].hex(),
    }
