"""Make the secrets that only two sites share, fresh for each key epoch. Their pairwise masks are derived from them.

When a site accepts the keys of an epoch, it makes a secret for every member of the roster whose name is greater than
its own. It seals the secret to that member by HPKE with ML-KEM-768 and X25519 (the suite of the epoch's own letters),
so that an attacker who records the traffic and later has a quantum computer cannot remove the masks. HPKE base mode
does not authenticate the sender, so the sender signs. The server relays these letters and cannot open them.

A letter is a signature, 64 bytes, followed by the sealed secret. Both ends know the context, so it is not sent.
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
    """Make a secret for every member with a greater name, bound to an epoch's keys.

    Returns:
        The secrets, and the letters that carry them, by member.
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
    """Open the letter that carries the secret of `sender` and `site`, bound to an epoch's keys.

    Raises:
        AuthenticityError: if `sender` did not write it for this site and epoch.
        MalformedError: if it does not hold a secret.
        ProtocolError: if the roster has no such member.
    """
    info, signature, sealed = _info(keys, roster, sender, site), letter[:SIGNATURE_BYTES], letter[SIGNATURE_BYTES:]
    verify(roster.member(sender).verification_key, KIND, info + sealed, signature)
    secret = key.open(sealed, info)
    if len(secret) != SECRET_BYTES or not sender < site:
        msg = f"{sender}'s letter to {site} contains no usable secret for masks; run the same version everywhere"
        raise MalformedError(msg)
    return secret


def _info(keys: EpochKeys, roster: Roster, sender: str, recipient: str) -> bytes:
    """Return the context to which HPKE and the signature bind the secret."""
    bound = [roster.consortium, roster.version, keys.epoch, keys.fingerprint, sender, recipient]
    return b"cloister pair " + json.dumps(bound).encode()
