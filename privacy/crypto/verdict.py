"""Find whose fault it is that a masked sum does not open, by judging each update's body against its signed header.

A member's header carries the digest of its ciphertexts. So a body with a wrong code or tag is evidence against its
site: every holder of the epoch's keys can check it, and nobody else can forge it. If the codes, tags and noise of all
bodies are right, so are those of their sum, and the fault is the server's.

A judge learns what is in a body. So the body must be masked, and its site's pairwise masks must not be known: in a run
without masks no site is ever given another site's body.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import SummedChunk, add_residues, pack60, residues
from privacy.codec.packing import PLAIN_MODULUS
from privacy.crypto.expansion import add_expanded
from privacy.crypto.signing import sign, verify
from privacy.errors import AuthenticityError

if TYPE_CHECKING:
    from privacy.codec.envelope import VerifiedUpdate
    from privacy.crypto.key_epoch import EpochKeys
    from privacy.crypto.signing import PrivateKey, PublicKey
    from privacy.parallel import Apply
    from privacy.run.plan import RoundPlan

KIND = "verdict"
# SEAL's noise is at most 21. A ciphertext times 64 still decrypts correctly if its noise is below q/2t/64, which is 32.
_DOUBLINGS = 6


def is_right(update: VerifiedUpdate, plan: RoundPlan, keys: EpochKeys, apply: Apply = map) -> bool:
    """Return whether sums with this body open: its codes and tags are right, and its ciphertexts' noise is small.

    Raises:
        MalformedError: if it holds anything but residues; the server must not have accepted it.
    """
    header, alone = update.header, update.ciphertexts.alone
    nonces = {header.site: header.nonce}
    try:
        chunks = keys.mac.check(alone, plan, nonces)
        blocks = keys.tag.check(keys.decryption.decrypt(chunks, apply), plan, nonces)
        louder = keys.decryption.decrypt(map(_louder, alone.chunks()), apply)
        return all(
            np.array_equal((block << np.uint64(_DOUBLINGS)) % np.uint64(PLAIN_MODULUS), other)
            for block, other in zip(blocks, louder, strict=True)
        )
    except AuthenticityError:
        return False


def sign_verdict(key: PrivateKey, plan: RoundPlan, header: bytes, *, right: bool) -> bytes:
    """Sign a verdict on the body of this header, right or wrong."""
    return sign(key, KIND, _statement(plan, header, right=right))


def verify_verdict(key: PublicKey, plan: RoundPlan, header: bytes, signature: bytes, *, right: bool) -> None:
    """Check that a site signed this verdict on the body of this header.

    Raises:
        AuthenticityError: if it did not.
    """
    verify(key, KIND, _statement(plan, header, right=right), signature)


def _statement(plan: RoundPlan, header: bytes, *, right: bool) -> bytes:
    return f"{plan.digest} {sha256(header).hexdigest()} {'right' if right else 'wrong'}".encode()


def _louder(chunk: SummedChunk) -> SummedChunk:
    """Multiply one site's ciphertexts by 64, modulo q."""
    c0 = residues(chunk.c0)
    c1 = np.zeros_like(c0)
    add_expanded(c1, chunk.seeds[0])
    for part in (c0, c1):
        for _ in range(_DOUBLINGS):
            add_residues(part, part)
    return SummedChunk(pack60(c0.reshape(-1)), [], pack60(c1.reshape(-1)), [])
