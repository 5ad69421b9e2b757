"""Updates and seeds with which a member of a masked run can spoil a sum, using all its keys."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import (
    C0_BYTES,
    CODE_BYTES,
    COEFF_MODULUS,
    SEED_BYTES,
    Ciphertexts,
    pack60,
    seeds_digest,
    unpack60,
)
from privacy.codec.envelope import SignedUpdate
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.masking import MaskedUpdate, commitment, pairs_digest, seed_sealer, sign_seed
from privacy.crypto.signing import sign
from privacy.ledger.ledger import Charge, Release
from simulations.attacks.forged_sums import STEP

if TYPE_CHECKING:
    from client.site import Site
    from privacy.run.plan import RoundPlan

_CHARGE = Charge(Release("0" * 64, 1, 1), None, "0" * 64)  # type: ignore[arg-type]


def resigned_by(site: Site, update: SignedUpdate, /, *chunks: bytes, **header: object) -> SignedUpdate:
    """Change an update's header or chunks, and sign it as this site."""
    fields = json.loads(update.header)
    if chunks:
        ciphertexts = Ciphertexts(chunks)
        header |= {"ciphertexts": ciphertexts.digest, "seeds": seeds_digest(ciphertexts.seeds)}
    data = json.dumps(fields | header, sort_keys=True, separators=(",", ":")).encode()
    signature = sign(site.signing_key, "update", data)
    return SignedUpdate(data, signature, chunks or update.chunks, update.commitments)


def wrong_code(site: Site, _: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with a wrong code for the last ciphertext."""
    (chunk,) = update.chunks
    code = (int.from_bytes(chunk[-CODE_BYTES:], "little") + 1) % COEFF_MODULUS
    return resigned_by(site, update, chunk[:-CODE_BYTES] + code.to_bytes(CODE_BYTES, "little"))


def wrong_tag(site: Site, plan: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with a tag that is off by one, under a right code."""
    return _shifted(site, plan, update, slice(RING_DEGREE - 1, RING_DEGREE), STEP)


def loud(site: Site, plan: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with as much ciphertext noise as still decrypts alone, but not in a sum."""
    return _shifted(site, plan, update, slice(0, RING_DEGREE), 2030)


def garbage(site: Site, plan: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with a value that no update has, under a right tag and code."""
    keys, header = site.keyring.find(plan.keys), json.loads(update.header)
    chunks = keys.mac.check(Ciphertexts(update.chunks).alone, plan, {site.name: header["nonce"]})
    (block,) = keys.decryption.decrypt(chunks)
    block[0, 5] = (block[0, 5] + np.uint64(PLAIN_MODULUS // 2)) % np.uint64(PLAIN_MODULUS)
    tagged = keys.tag.tag(MaskedUpdate(iter([block]), _CHARGE), plan, site.name)
    authenticated = keys.mac.authenticate(keys.decryption.encrypt(tagged), plan, site.name)
    return resigned_by(site, update, *authenticated.ciphertexts.chunks, nonce=authenticated.nonce)


def other_pairs(site: Site, _: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with commitments to masks other than those that the site shares."""
    lied = bytes(len(update.commitments))
    return replace(resigned_by(site, update, pairs=pairs_digest(lied)), commitments=lied)


def other_range(site: Site, _: RoundPlan, update: SignedUpdate) -> SignedUpdate:
    """Return the update with a range other than the shared model's."""
    return resigned_by(site, update, update_bound=json.loads(update.header)["update_bound"] / 2)


def false_seed(site: Site, plan: RoundPlan) -> bytes:
    """Return a wrong seed, sealed and signed as if it were that of the site's mask."""
    previous = site.outbox.last(plan.run)
    committed = commitment(previous.mask if previous else b"")
    sealer = seed_sealer(site.keyring.find(plan.keys).secret, plan, site.name, committed)
    sealed = sealer.encrypt(bytes(12), bytes(32), None)
    return sign_seed(sealed, plan, committed, site.signing_key)


def _shifted(site: Site, plan: RoundPlan, update: SignedUpdate, place: slice, by: int) -> SignedUpdate:
    """Add `by` to coefficients of the first ciphertext's c0, and authenticate the result."""
    (chunk,) = update.chunks
    first = Ciphertexts(update.chunks).count * C0_BYTES
    words = unpack60(chunk[:first]).copy()
    words[place] = (words[place] + np.uint64(by)) % np.uint64(COEFF_MODULUS)
    seeds = chunk[first : first + first // C0_BYTES * SEED_BYTES]
    changed = EncryptedUpdate(iter([(pack60(words), seeds)]), _CHARGE, json.loads(update.header)["nonce"])
    authenticated = site.keyring.find(plan.keys).mac.authenticate(changed, plan, site.name)
    return resigned_by(site, update, *authenticated.ciphertexts.chunks)
