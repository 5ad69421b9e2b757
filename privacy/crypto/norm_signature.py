"""Sign norm proofs so that the server can check who signed one without a key.

A proof is bound to seeds that the server cannot read. If its signature were bound to them too, the server could not
check it, and sites that find a false signature could not tell whether the member or the server is to blame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.crypto.signing import SIGNATURE_BYTES, sign, verify

if TYPE_CHECKING:
    from privacy.crypto.signing import PrivateKey, PublicKey

KIND = "norm"


def subject_of(plan_digest: str, set_digest: str, sum_digest: str) -> bytes:
    """Return the identity of the sum that a proof belongs to, 96 bytes: the part of its context that the server knows.

    Args:
        plan_digest: digest of the plan, in hex.
        set_digest: digest of the contributors' headers, in hex. They commit to the seeds, so they fix the context.
        sum_digest: digest of the ciphertexts of their sum, in hex.
    """
    return b"".join(bytes.fromhex(digest) for digest in (plan_digest, set_digest, sum_digest))


def sign_proof(proof: bytes, subject: bytes, key: PrivateKey) -> bytes:
    """Return a site's proof with its signature in front."""
    return sign(key, KIND, subject + proof) + proof


def verify_proof(document: bytes, subject: bytes, key: PublicKey) -> bytes:
    """Return the proof that a site signed, without checking whether the proof holds.

    Raises:
        AuthenticityError: if the site did not sign this proof for this sum.
    """
    signature, proof = document[:SIGNATURE_BYTES], document[SIGNATURE_BYTES:]
    verify(key, KIND, subject + proof, signature)
    return proof
