"""What a second implementation needs to check its streams: codes on ciphertexts, and masks. `golden.py` writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto.agreement import absent_from, agree, set_digest
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.masking import Masks, commitment, pairs_digest, seal_pairs, seal_seed, sign_pairs, sign_seed
from privacy.run.plan import MOST_SEEDS
from tests.privacy.consortium import CHARGE, SECRET, SITES, mac_key, plan_with, shared_secrets, signing_key

if TYPE_CHECKING:
    from privacy.run.plan import RoundPlan

FIRST = 4  # residues of each stream
_SEED = bytes(range(32))


def codes(plan: RoundPlan, nonce: str, c0: bytes, seed: bytes) -> dict[str, object]:
    """Return secret coefficients, pads and codes of one ciphertext of north's, in a small cohort and a large one."""
    large = plan_with(plan, cohort=tuple(sorted((*SITES, *(f"site-{n:02}" for n in range(MOST_SEEDS))))))
    key, rows = mac_key(), list[dict[str, object]]()
    for chosen in (plan, large):
        authenticated = key.authenticate(
            EncryptedUpdate(iter([(c0, seed)]), CHARGE, nonce), chosen, "north"
        ).ciphertexts
        rows.append({
            "plan": chosen.to_bytes().decode(),
            "digest": chosen.digest,
            "pads": key._pads(chosen, "north", nonce).residues(FIRST, COEFF_MODULUS).tolist(),
            "code": authenticated.codes.hex(),
        })  # fmt: skip
    rho = key._stream(b"rho").residues(2 * RING_DEGREE, COEFF_MODULUS).reshape(2, RING_DEGREE)
    return {"secret": SECRET.hex(), "site": "north", "nonce": nonce, "rho": rho[:, :FIRST].tolist(), "rounds": rows}


def masks(plan: RoundPlan) -> dict[str, object]:
    """Return keys, seeds, the first residues of each of south's streams, and what they make of zeros."""
    masks_of_south = Masks(shared_secrets("south"), _SEED, plan, "south")
    (own, west), (north,) = masks_of_south._streams()
    first = {name: stream.residues(FIRST, PLAIN_MODULUS).tolist() for name, stream in
             (("own", own), ("north", north), ("west", west))}  # fmt: skip
    zeros = np.zeros((1, RING_DEGREE), np.uint64)
    masked = next(masks_of_south.mask([zeros]))
    headers, key = {"north": b"north's header", "south": b"south's header"}, signing_key("south")
    pairs = seal_pairs(masks_of_south, absent_from(plan, headers), SECRET, plan, "south")
    return {
        "plan": plan.to_bytes().decode(),
        "secrets": {site: secret.hex() for site, secret in shared_secrets("south").items()},
        "site": "south",
        "seed": _SEED.hex(),
        "commitment": commitment(_SEED),
        "pair_seeds": {other: seed.hex() for other, seed in masks_of_south.pairs.items()},
        "commitments": masks_of_south.commitments.hex(),
        "pairs": pairs_digest(masks_of_south.commitments),
        "secret": SECRET.hex(),
        "sealed": sign_seed(seal_seed(_SEED, SECRET, plan, "south"), plan, commitment(_SEED), key).hex(),
        "headers": {site: header.decode() for site, header in headers.items()},
        "absent": absent_from(plan, headers),
        "sealed_pairs": sign_pairs(
            pairs, plan, pairs_digest(masks_of_south.commitments), absent_from(plan, headers), key
        ).hex(),
        "set": set_digest(headers),
        "agreed": agree(_Nothing(), plan, headers, key).hex(),
        "streams": first,
        "masked": [*masked[0, :FIRST].tolist(), *masked[0, -FIRST:].tolist()],
    }


class _Nothing:
    """A record that is not kept."""

    def note(self, run: str, action: str, value: str) -> None:
        """Do nothing."""

    def find(self, run: str, action: str) -> None:
        """Find nothing."""
