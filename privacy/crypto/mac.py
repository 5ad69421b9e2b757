"""Authenticate ciphertexts with a code (MAC), so that a site decrypts only the exact sum of what contributors sent.

The sum's tag (`privacy.crypto.tag`) is inside the ciphertext and can be checked only after decryption. A server could
perturb a ciphertext slightly, see whether sites refuse it, and so learn about its error or, where the server sends c1
itself, about the decryption key. So each site also authenticates its ciphertexts, with keys that the server lacks:

    μ = Σⱼ ρⱼ·c0ⱼ (+ Σⱼ ρ'ⱼ·c1ⱼ) + pᵢ  mod q     ρ, ρ': secret, fixed for the epoch     pᵢ = PRF(plan, nonce, site i)

The c1 term is present only in cohorts large enough for the server to add up c1. The server adds the codes as it adds
the ciphertexts. Before decrypting, a site recomputes the code from the sum's c0, and from its c1 in such a cohort, with
the pads of exactly the contributors. Since q is prime, anything else passes with probability 1/q < 2⁻⁵⁹ per ciphertext
(the tag's construction: Agrawal and Boneh, ACNS 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS, Ciphertexts, residues
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.expansion import add_expanded
from privacy.crypto.tag import pad_label
from privacy.errors import AuthenticityError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from privacy.codec.ciphertext import SummedChunk, SummedCiphertexts
    from privacy.crypto.encryption import EncryptedUpdate
    from privacy.ledger.ledger import Charge
    from privacy.run.plan import RoundPlan

_BITS = 20  # per part of ρ: with 16 bits of a residue and 4,096 terms, a sum stays below 2^53
_PARTS = 3


@dataclass(frozen=True)
class AuthenticatedUpdate:
    """An encrypted update with its codes, and the charge under which it was made."""

    ciphertexts: Ciphertexts
    charge: Charge
    nonce: str  # 32 bytes in hex, to which the pads of its tags and codes are bound


class MacKey:
    """The sites' key for codes on ciphertexts, one per key epoch."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def authenticate(self, update: EncryptedUpdate, plan: RoundPlan, site: str) -> AuthenticatedUpdate:
        """Append a site's codes to the seeds of its ciphertexts, chunk by chunk."""
        chunks, pads = [], self._pads(plan, site, update.nonce)
        for c0, seeds in update.chunks:
            codes = self._codes(residues(c0), [seeds], b"", plan)
            padded = [(code + pad) % COEFF_MODULUS for code, pad in zip(codes, _next(pads, len(codes)), strict=True)]
            chunks.append(b"".join([c0, seeds, *(code.to_bytes(8, "little") for code in padded)]))
        return AuthenticatedUpdate(Ciphertexts(tuple(chunks)), update.charge, update.nonce)

    def check(self, total: SummedCiphertexts, plan: RoundPlan, nonces: Mapping[str, str]) -> Iterator[SummedChunk]:
        """Yield each chunk of a sum once its code proves that it is the sum of these sites' updates for this plan.

        Args:
            total: the sum, with the sum of its contributors' codes.
            plan: the round's plan.
            nonces: every contributor's nonce, from its signed header.

        Raises:
            AuthenticityError: when a chunk is taken that is anything else.
            MalformedError: when a chunk is taken that holds anything but residues.
        """
        streams = [self._pads(plan, site, nonce) for site, nonce in nonces.items()]
        for chunk in total.chunks():
            codes = self._codes(residues(chunk.c0), chunk.seeds, chunk.c1, plan)
            pads = zip(*(_next(stream, len(codes)) for stream in streams), strict=True)
            if [(code + sum(pad)) % COEFF_MODULUS for code, pad in zip(codes, pads, strict=True)] != chunk.codes:
                msg = (
                    f"the ciphertexts of round {plan.round} are not the sum of the updates that they claim to "
                    "contain: the server changed, dropped, duplicated or replayed one; nothing was decrypted"
                )
                raise AuthenticityError(msg)
            yield chunk

    def _codes(self, c0: NDArray[np.uint64], seeds: Sequence[bytes], c1: bytes, plan: RoundPlan) -> list[int]:
        """Return the codes of ciphertexts, without pads."""
        codes = _inner(c0, self._rho[0])
        if plan.expanded:
            whole = residues(c1) if c1 else np.zeros_like(c0)
            for seed in () if c1 else seeds:
                add_expanded(whole, seed)
            codes = [a + b for a, b in zip(codes, _inner(whole, self._rho[1]), strict=True)]
        return codes

    @cached_property
    def _rho(self) -> NDArray[np.float64]:
        """ρ and ρ', each in parts of 20 bits, `(2, 3, 4096)`."""
        rho = self._stream(b"rho").residues(2 * RING_DEGREE, COEFF_MODULUS).reshape(2, 1, RING_DEGREE)
        shifts = np.arange(_PARTS, dtype=np.uint64).reshape(_PARTS, 1) * np.uint64(_BITS)
        parts: NDArray[np.float64] = (rho >> shifts & np.uint64((1 << _BITS) - 1)).astype(np.float64)
        return parts

    def _pads(self, plan: RoundPlan, site: str, nonce: str) -> Randomness:
        return self._stream(pad_label(plan, site, nonce))

    def _stream(self, label: bytes) -> Randomness:
        return Randomness.derived(self._secret, b"cloister mac " + label)


def _next(pads: Randomness, count: int) -> list[int]:
    drawn: list[int] = pads.residues(count, COEFF_MODULUS).tolist()
    return drawn


def _inner(rows: NDArray[np.uint64], rho: NDArray[np.float64]) -> list[int]:
    """Return Σⱼ ρⱼ·cⱼ for each row of `(n, 4096)`: over limbs of 16 and 20 bits, exact in doubles, then in integers."""
    limbs = np.ascontiguousarray(rows, dtype="<u8").view("<u2").reshape(-1, RING_DEGREE, 4)
    terms = np.einsum("ckj,pj->ckp", limbs.transpose(0, 2, 1).astype(np.float64, order="C"), rho)
    return [
        sum(int(term) << (16 * k + _BITS * part) for k, parts in enumerate(row) for part, term in enumerate(parts))
        for row in terms.tolist()
    ]
