"""Sign and verify updates, which binds their ciphertexts to one site, one round and one model.

The header carries the whole context of an update and the digest of its ciphertexts; the site's Ed25519 key signs it.
The server verifies an update before it adds it. The headers travel with the sum, so that every site checks again who
contributed, to which plan and with which weight. A header also carries the digest of the seeds alone: they determine
c1, so a sum that omits a site or counts one twice decrypts to noise and not to some site's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.codec.ciphertext import Ciphertexts, seeds_digest
from privacy.codec.header import KIND, UpdateHeader, verify_header
from privacy.crypto.masking import COMMITMENT_BYTES, pairs_digest
from privacy.crypto.signing import sign
from privacy.errors import AuthenticityError, ProtocolError

if TYPE_CHECKING:
    from privacy.codec.update import Layout
    from privacy.crypto.mac import AuthenticatedUpdate
    from privacy.crypto.signing import PrivateKey
    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Roster


@dataclass(frozen=True)
class SignedUpdate:
    """An update in wire form. Nothing in it has been checked."""

    header: bytes
    signature: bytes
    chunks: tuple[bytes, ...]
    commitments: bytes = b""  # to the masks shared with each member of the cohort; empty without masks


@dataclass(frozen=True)
class Contribution:
    """One site's part in a sum: its signed header, and the seeds of its c1 unless the server has expanded them."""

    header: bytes
    signature: bytes
    seeds: bytes
    reveal: bytes = b""  # the seed of its own mask, signed and sealed to the sites
    pairs: bytes = b""  # the seeds of masks shared with members who are not in the sum, signed and sealed, with proofs


@dataclass(frozen=True)
class VerifiedUpdate:
    """An update that its site signed for this plan, and whose ciphertexts are complete."""

    header: UpdateHeader
    ciphertexts: Ciphertexts
    contribution: Contribution
    commitments: bytes


def sign_update(
    update: AuthenticatedUpdate,
    plan: RoundPlan,
    layout: Layout,
    site: str,
    key: PrivateKey,
    *,
    weight: float,
    update_bound: float,
    mask: str,
    commitments: bytes = b"",
) -> SignedUpdate:
    """Bind encrypted values to site, plan, layout and ledger, and sign.

    Raises:
        ProtocolError: if the update was charged for another run or round than the plan's, or for a later attempt.
    """
    release = update.charge.release  # a later attempt may send the same update under other masks
    if (release.run, release.round) != (plan.run, plan.round) or release.attempt > plan.attempt:
        msg = f"an update charged for round {release.round} cannot be sent for round {plan.round}"
        raise ProtocolError(msg)
    header = UpdateHeader(
        site=site,
        run=plan.run,
        round=plan.round,
        attempt=plan.attempt,
        plan=plan.digest,
        roster_version=plan.roster_version,
        keys=plan.keys,
        base_model=plan.base_model,
        layout=layout.digest,
        size=layout.size,
        weight=weight,
        update_bound=update_bound,
        mask=mask,
        pairs=pairs_digest(commitments),
        nonce=update.nonce,
        ciphertexts=update.ciphertexts.digest,
        seeds=seeds_digest(update.ciphertexts.seeds),
        ledger_head=update.charge.head,
    )
    data = header.to_bytes()
    return SignedUpdate(data, sign(key, KIND, data), update.ciphertexts.chunks, commitments)


def verify_update(
    signed: SignedUpdate, site: str, plan: RoundPlan, manifest: Manifest, roster: Roster
) -> VerifiedUpdate:
    """Check everything about an update that can be checked without a key. See `verify_header` for more errors.

    Raises:
        AuthenticityError: if the ciphertexts or commitments are not the signed ones.
        MalformedError: if the ciphertexts or commitments have the wrong length.
    """
    header = verify_header(signed.header, signed.signature, site, plan, manifest, roster)
    ciphertexts = Ciphertexts.read(signed.chunks, manifest.packing.ciphertexts(header.size))
    if (ciphertexts.digest, seeds_digest(ciphertexts.seeds)) != (header.ciphertexts, header.seeds):
        msg = f"the ciphertexts of {site}'s update are not those that it signed; the update was altered in transit"
        raise AuthenticityError(msg)
    expected = COMMITMENT_BYTES * len(plan.cohort) if header.pairs else 0
    if len(signed.commitments) != expected or pairs_digest(signed.commitments) != header.pairs:
        msg = f"the commitments of {site}'s update are not those that it signed; the update was altered in transit"
        raise AuthenticityError(msg)
    contribution = Contribution(signed.header, signed.signature, ciphertexts.seeds)
    return VerifiedUpdate(header, ciphertexts, contribution, signed.commitments)
