"""Secrets that two sites share and nobody else has, fresh for each key epoch: what the masks between them come from.

When a site takes the keys of an epoch, it makes a secret for every member of the roster whose name is greater than its
own, and seals it to that member by HPKE with ML-KEM-768 and X25519 (the suite of the epoch's own letters): so whoever
records the line, and has a quantum computer later, does not take the masks off. HPKE says nothing of the sender; the
sender signs. The server relays these letters and cannot open them.

A letter is a signature, 64 bytes, and what is sealed. Nothing else stands in it: what it is about, both ends know.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from privacy.crypto.key_epoch import seal
from privacy.crypto.signing import SIGNATURE_BYTES, sign, verify
from privacy.errors import MalformedError

if TYPE_CHECKING:
    from privacy.crypto.key_epoch import EpochKeys, SealingKey
    from privacy.crypto.signing import PrivateKey
    from privacy.run.roster import Roster

KIND = "pair"
SECRET_BYTES = 32


def write_pairs(
    keys: EpochKeys, roster: Roster, sender: str, signing_key: PrivateKey
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Make a secret for every member with a greater name, under an epoch's keys.

    Returns:
        The secrets, and the letters that bring them, by member.
    """
    secrets, letters = dict[str, bytes](), dict[str, bytes]()
    for member in roster.members:
        if member.site > sender:
            secrets[member.site] = os.urandom(SECRET_BYTES)
            info = _info(keys, roster, sender, member.site)
            sealed = seal(member.sealing_key, secrets[member.site], info)
            letters[member.site] = sign(signing_key, KIND, info + sealed) + sealed
    return secrets, letters


def read_pair(letter: bytes, keys: EpochKeys, roster: Roster, sender: str, site: str, key: SealingKey) -> bytes:
    """Open the secret that a member shares with `site` under an epoch's keys.

    Raises:
        AuthenticityError: if that member did not write it for this site and epoch.
        MalformedError: if it is no secret.
        ProtocolError: if there is no such member.
    """
    info, signature, sealed = _info(keys, roster, sender, site), letter[:SIGNATURE_BYTES], letter[SIGNATURE_BYTES:]
    verify(roster.member(sender).verification_key, KIND, info + sealed, signature)
    secret = key.open(sealed, info)
    if len(secret) != SECRET_BYTES or not sender < site:
        msg = f"{sender}'s letter to {site} brings no secret that the two could share; run the same version everywhere"
        raise MalformedError(msg)
    return secret


def _info(keys: EpochKeys, roster: Roster, sender: str, recipient: str) -> bytes:
    """Return what HPKE and the signature bind the secret to."""
    bound = [roster.consortium, roster.version, keys.epoch, keys.fingerprint, sender, recipient]
    return b"cloister pair " + json.dumps(bound).encode()
