"""Masks at a site: make fresh ones for every attempt, and reveal their seeds under the rules of `agreement`."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from client.round.aggregate import shown_seeds
from client.round.norms import Lengths, fix_sum
from privacy.codec.ciphertext import Ciphertexts
from privacy.codec.update import PackedUpdate
from privacy.crypto import agreement
from privacy.crypto.masking import (
    SEED_BYTES,
    Masks,
    commitment,
    pairs_digest,
    seal_pairs,
    seal_seed,
    sign_pairs,
    sign_seed,
)
from privacy.crypto.summation import check_contributions
from privacy.errors import LedgerError, ProtocolError
from privacy.failpoints import failpoint
from privacy.run.plan import check_under_way

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from client.round.admission import Round
    from client.site import Site
    from client.state.outbox import OutboxEntry
    from privacy.codec.envelope import Contribution
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.plan import RoundPlan


def new_masks(current: Round) -> tuple[bytes, Masks | None]:
    """Return a fresh seed and this site's masks for a plan; `(b"", None)` in a run without masks.

    Raises:
        ProtocolError: if the site has revealed its seed for another plan of the round that this one does not repeat.
    """
    site, plan = current.site, current.plan
    if not current.settings.encryption.collusion_resistant:
        return b"", None
    agreement.check_repeat(site.commitments, plan, plan.cohort)
    seed = os.urandom(SEED_BYTES)
    return seed, _masks(site, seed, plan)


def recover(current: Round) -> PackedUpdate | None:
    """Return the update of an earlier attempt at this round, unmasked, if there is one; it is already charged.

    Raises:
        LedgerError: if the ledger has no charge for it.
        ProtocolError: if the site has revealed its seed in this round, and not for the plan of its last update.
    """
    site, plan = current.site, current.plan
    last = site.outbox.last(plan.run)
    if last and (not last.mask or (last.plan.round, last.plan.base_model) != (plan.round, plan.base_model)):
        last = None
    agreement.check_unchanged(site.commitments, plan, last.plan if last else None)
    if last is None:
        return None
    charge = current.ledger.find(plan.run, plan.round)
    if charge is None:
        msg = (
            f"{current.ledger.path}: the ledger has no entry for the update of round {plan.round}, which was sent; "
            "restore it from backup"
        )
        raise LedgerError(msg)
    return PackedUpdate(_unmasked(site, last), charge)


def agree(current: Round, contributions: Sequence[Contribution]) -> tuple[bytes, bytes]:
    """Sign the set of contributors to a plan's sum; return it with the signed seeds of masks shared with absent sites.

    Raises:
        ProtocolError: if this site sent no masked update for the plan, is not among the contributors, or has signed
            another set for this plan; if there are too few contributors; or if the plan's round is long over.
        AuthenticityError, MalformedError: if a header is invalid.
    """
    site, plan = current.site, current.plan
    mask, headers = _verified(current, contributions)
    signature = agreement.agree(site.commitments, plan, headers, site.signing_key)
    failpoint("set-signed")
    absent = agreement.absent_from(plan, headers)
    if not absent:
        return signature, b""
    masks = _masks(site, mask, plan)
    secret = site.keyring.find(plan.keys).secret
    sealed = seal_pairs(masks, absent, secret, plan, site.name)
    return signature, sign_pairs(sealed, plan, pairs_digest(masks.commitments), absent, site.signing_key)


def reveal(
    current: Round, contributions: Sequence[Contribution], signatures: Mapping[str, bytes], summed: str = ""
) -> bytes:
    """Return the seed of this site's own mask, sealed to the sites and signed; with `update_norm`, for one sum only.

    Raises:
        ProtocolError: as `agree`, or if the site has revealed its seed for another attempt that this does not repeat.
        AuthenticityError, MalformedError: if a header is invalid, or a contributor did not sign this set.
    """
    site, plan = current.site, current.plan
    mask, headers = _verified(current, contributions)
    agreement.check_agreed(plan, headers, signatures, site.roster_under(plan.keys))
    if current.settings.encryption.update_norm is not None:
        fix_sum(site.commitments, plan, summed)
    committed = commitment(mask)
    agreement.reveal(site.commitments, plan, headers, committed)
    failpoint("seed-revealed")
    sealed = seal_seed(mask, site.keyring.find(plan.keys).secret, plan, site.name)
    return sign_seed(sealed, plan, committed, site.signing_key)


def prove(current: Round, total: EncryptedSum, signatures: Mapping[str, bytes], summed: str) -> bytes:
    """Prove that the norm of this site's update is within the run's limit, once all have revealed their masks' seeds.

    Proofs follow the rules for seeds: the site proves only for the plan and sum for which it revealed its seed.

    Args:
        current: the round.
        total: the sum of its plan, without its ciphertexts.
        signatures: the contributors' signatures on their set.
        summed: the sum's digest.

    Raises:
        ProtocolError: as `reveal`, or if the run bounds no norm.
        AuthenticityError, MalformedError: as `reveal`, or if a seed is not the one to which its site committed.
    """
    site, manifest, plan = current.site, current.manifest, current.plan
    update_norm = current.settings.encryption.update_norm
    if update_norm is None:
        msg = f"the run {current.settings.name!r} has no update_norm; {site.name} proves nothing about its update"
        raise ProtocolError(msg)
    reveal(current, total.contributions, signatures, summed)
    headers = check_contributions(total.contributions, plan, manifest, site.roster_under(plan.keys))
    seeds, _ = shown_seeds(site, total, headers, plan, [])
    packing = replace(manifest.packing, update_bound=headers[site.name].update_bound)
    kept = cast("OutboxEntry", site.outbox.last(plan.run))  # `reveal` checked it
    lengths = Lengths(plan, headers, summed, seeds, packing, update_norm)
    return lengths.prove(site, _unmasked(site, kept), site.keyring.shared_with(plan.keys, headers, site.name))


def _unmasked(site: Site, kept: OutboxEntry) -> Iterator[NDArray[np.uint64]]:
    """Decrypt an update of this site, and return it as it was packed."""
    keys, plan = site.keyring.find(kept.plan.keys), kept.plan
    nonces = {site.name: json.loads(kept.update.header)["nonce"]}
    chunks = keys.mac.check(Ciphertexts(kept.update.chunks).alone, plan, nonces)
    blocks = keys.tag.check(keys.decryption.decrypt(chunks, site.apply), plan, nonces)
    return _masks(site, kept.mask, plan).unmask(blocks)


def _masks(site: Site, seed: bytes, plan: RoundPlan) -> Masks:
    return Masks(site.keyring.shared_with(plan.keys, plan.cohort, site.name), seed, plan, site.name)


def _verified(current: Round, contributions: Sequence[Contribution]) -> tuple[bytes, dict[str, bytes]]:
    """Check the contributions before revealing a seed; return this site's own, and all headers by site."""
    site, plan = current.site, current.plan
    kept = site.outbox.masked(plan)
    if kept is None:
        msg = f"{site.name} has sent no masked update for this plan of round {plan.round}; it reveals no seed"
        raise ProtocolError(msg)
    header, mask = kept
    check_under_way(plan, current.settings.cohort.round_deadline_seconds, site.name)
    verified = check_contributions(contributions, plan, current.manifest, site.roster_under(plan.keys))
    headers = {name: part.header for name, part in zip(verified, contributions, strict=True)}
    agreement.check_set(plan, headers, (site.name, header), current.settings.cohort.minimum)
    return mask, headers
