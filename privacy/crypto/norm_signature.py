"""What a site signs before its proof of how long its update is, apart from the proof: a server checks it without a key.

A proof is bound to seeds that the server cannot read. Were its signature too, a member could send what nobody signed,
and sites that find so could not tell its doing from the server's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.crypto.signing import SIGNATURE_BYTES, sign, verify

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey, PublicKey

KIND = "norm"


def subject_of(plan_digest: str, set_digest: str, sum_digest: str) -> bytes:
    """Return of which sum a proof is, 96 bytes: all that the server knows of what proofs are bound to.

    Args:
        plan_digest: of the plan, in hex.
        set_digest: of the contributors' headers, in hex. They commit to the seeds, so that one context is left.
        sum_digest: of the ciphertexts of their sum, in hex.
    """
    return b"".join(bytes.fromhex(digest) for digest in (plan_digest, set_digest, sum_digest))


def sign_proof(proof: bytes, subject: bytes, key: PrivateKey) -> bytes:
    """Put a site's signature before its proof."""
    return sign(key, KIND, subject + proof) + proof


def verify_proof(shown: bytes, subject: bytes, key: PublicKey) -> bytes:
    """Return the proof that a site signed; whether it holds is another matter.

    Raises:
        AuthenticityError: if it did not sign this one, of this sum.
    """
    signature, proof = shown[:SIGNATURE_BYTES], shown[SIGNATURE_BYTES:]
    verify(key, KIND, subject + proof, signature)
    return proof
