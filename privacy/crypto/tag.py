"""Tag updates inside their ciphertexts: a malicious server cannot change, drop, double or replay one unnoticed.

Encryption hides a sum but does not prove that it is the right one. Without a key, the server could return one site's
ciphertext as "the sum", leave one out, add one twice, or add a constant. So the sites also share a tag key, and site i
puts into the last coefficient of its ciphertext c

    τ = Σⱼ αⱼ·mⱼ + rᵢ  mod t        αⱼ: secret, fixed for the epoch      rᵢ = PRF(plan, nonce, site i, c)

where mⱼ are the other coefficients. τ is linear: the sum's last coefficient must equal Σⱼ αⱼ·Mⱼ + Σᵢ rᵢ over exactly
the claimed contributors. Since t is prime, any other combination passes with probability 1/t < 2⁻⁴⁷ per ciphertext
(linearly homomorphic MACs: Agrawal and Boneh, ACNS 2009; Catalano and Fiore, Eurocrypt 2013). The plan's digest covers
run, round, attempt, cohort and model, so no tag is valid in another round. The nonce is fresh for every update and is
in its signed header, so two updates for one plan have different pads. (A site restored from a backup may make two.)
The same pad for both would reveal Σⱼ αⱼ·(mⱼ − m'ⱼ).

Anyone who holds the tag key can forge: tags do not stop a site that colludes with the server.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.errors import AuthenticityError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from privacy.crypto.masking import MaskedUpdate
    from privacy.ledger.ledger import Charge
    from privacy.run.plan import RoundPlan

KEY_BYTES = 32
NONCE_BYTES = 32
_PLACE = RING_DEGREE - 1  # the packing leaves it free
_T = np.uint64(PLAIN_MODULUS)
_HALF = 24  # bits


@dataclass(frozen=True, eq=False)
class TaggedUpdate:
    """A masked update that carries its tags: blocks of coefficients `(n, 4096)` of uint64, below t."""

    blocks: Iterator[NDArray[np.uint64]]
    charge: Charge
    nonce: str  # 32 bytes in hex, fresh for this update; its pads are bound to it


def pad_label(plan: RoundPlan, site: str, nonce: str) -> bytes:
    """Return the label from which the pads of one update's tags and codes are derived, together with a key."""
    return b"pad" + bytes.fromhex(plan.digest) + bytes.fromhex(nonce) + site.encode()


class TagKey:
    """The sites' tag key of one key epoch."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @cached_property
    def _alpha(self) -> NDArray[np.float64]:
        """The low and high 24 bits of the secret coefficients α, `(2, 4095)`."""
        alpha = self._stream(b"alpha").residues(_PLACE, PLAIN_MODULUS)
        return np.stack([alpha & np.uint64((1 << _HALF) - 1), alpha >> np.uint64(_HALF)]).astype(np.float64)

    def tag(self, update: MaskedUpdate, plan: RoundPlan, site: str) -> TaggedUpdate:
        """Put a site's tags into its update, in place, as the blocks are taken, with pads from a fresh nonce."""
        nonce = secrets.token_hex(NONCE_BYTES)
        return TaggedUpdate(self._tagged(update.blocks, self._pads(plan, site, nonce)), update.charge, nonce)

    def _tagged(self, blocks: Iterable[NDArray[np.uint64]], pads: Randomness) -> Iterator[NDArray[np.uint64]]:
        for block in blocks:
            block[:, _PLACE] = (self._inner(block) + pads.residues(len(block), PLAIN_MODULUS)) % _T
            yield block

    def check(
        self, total: Iterable[NDArray[np.uint64]], plan: RoundPlan, nonces: Mapping[str, str]
    ) -> Iterator[NDArray[np.uint64]]:
        """Yield each block of a decrypted sum once its tags prove that it sums these sites' updates for this plan.

        Args:
            total: blocks of coefficients `(n, 4096)`.
            plan: the round's plan.
            nonces: every contributor's nonce, from its signed header.

        Raises:
            AuthenticityError: when a block is taken that is anything else.
        """
        pads = [self._pads(plan, site, nonce) for site, nonce in nonces.items()]
        for block in total:
            expected = self._inner(block)
            for pad in pads:
                expected = (expected + pad.residues(len(block), PLAIN_MODULUS)) % _T
            if (expected != block[:, _PLACE]).any():
                msg = (
                    f"the sum of round {plan.round} is not the sum of the updates that it claims to contain: the "
                    "server changed, dropped, duplicated or replayed one; the model stays as it was"
                )
                raise AuthenticityError(msg)
            yield block

    def _inner(self, coefficients: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return Σⱼ αⱼ·mⱼ mod t, `(ciphertexts,)`.

        The sums of products of 16-bit limbs of m with 24-bit halves of α stay below 2⁵²: exact in doubles.
        """
        limbs = np.ascontiguousarray(coefficients, dtype="<u8").view("<u2").reshape(-1, RING_DEGREE, 4)
        parts = limbs[:, :_PLACE, :3].transpose(0, 2, 1).astype(np.float64, order="C")
        # Not `@`: BLAS would start threads that cost more than they save.
        terms = np.einsum("ckj,pj->ckp", parts, self._alpha).tolist()
        sums = (sum((int(low) + (int(high) << _HALF)) << 16 * k for k, (low, high) in enumerate(row)) for row in terms)
        return np.array([total % PLAIN_MODULUS for total in sums], dtype=np.uint64)

    def _pads(self, plan: RoundPlan, site: str, nonce: str) -> Randomness:
        """Start the stream of one update's pads, one residue per ciphertext."""
        return self._stream(pad_label(plan, site, nonce))

    def _stream(self, label: bytes) -> Randomness:
        """Start the stream that the key and the label determine."""
        return Randomness.derived(self._secret, b"cloister tag " + label)
