"""A round at a site, in the order that keeps its promises.

    1. open    what other rounds' sums this site has missed
    2. check   the plan against the manifest, the manifest against the site's policy
    3. reserve the round's privacy spend, on disk, before any record is trained on; and before that, find out all that
       can be known to fail: `client.readiness`
    4. train   with DP-SGD, as the run's algorithm says, or add up a survey's records with noise
               → Update → PrivateUpdate
    5. encode  add what the last update left over, cut to the run's norm if it has one; pack, mask, tag, encrypt
               → PackedUpdate → … → EncryptedUpdate
       With shared noise, training adds none and nothing is left over: the site's share comes while it is packed
    6. sign    → SignedUpdate, stored before it is sent; a retry sends these very bytes

An attempt that failed for want of a site is repeated with the same update, under fresh masks. When the server has added
all updates, the site opens their sum: see `client.opening`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from client.acceptance import accept
from client.local import keep_own, local_round, train_locally
from client.masking import new_masks, recover
from client.norms import shorten
from client.opening import open_sum
from client.readiness import ready_to_be_charged
from client.study import Study
from privacy.envelope import sign_update
from privacy.errors import ProtocolError
from privacy.ledger import Release
from privacy.masking import commitment, mask
from privacy.packing import pack, pack_with_share
from privacy.plan import check_plan, read_plan
from privacy.randomness import Randomness
from privacy.shared import share_for
from privacy.update import privatise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.acceptance import Accepted
    from client.checkpoint import Checkpoint
    from client.site import Site
    from privacy.entries import Purpose
    from privacy.envelope import SignedUpdate
    from privacy.epoch import EpochKeys
    from privacy.ledger import Charge
    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum
    from privacy.update import PackedUpdate, PrivateUpdate, Update


def train_round(site: Site, document: bytes, plan_bytes: bytes, missed: Sequence[EncryptedSum]) -> SignedUpdate:
    """Steps 1 to 6. See there for the errors; whatever fails, nothing leaves the site that was not charged."""
    accepted = accept(site, document)
    for total in missed:
        open_sum(site, accepted, total)
    accepted.manifest.check_valid(time.time())
    plan = read_plan(plan_bytes)
    check_plan(plan, accepted.manifest, accepted.run, site.name)
    made, release = site.outbox.find(plan), _release_of(accepted.manifest, plan)
    ledger, _ = site.account(accepted.manifest.settings)
    if made is None and ledger.has_left(release):
        msg = f"{site.name} has made its update of round {plan.round} and lost it; it makes no other for the same plan"
        raise ProtocolError(msg)
    if made is None:
        # Handed over and not kept here: it is out of memory again before the update is encrypted.
        made = _make_update(site, accepted.manifest, plan, _starting_point(site, accepted, plan))
    ledger.leaves(release, sha256(made.header).hexdigest())
    return made


def _starting_point(site: Site, accepted: Accepted, plan: RoundPlan) -> Checkpoint:
    """Return the site's model, if the plan starts from it."""
    checkpoint = site.checkpoint(accepted.manifest, accepted.run)
    if plan.round <= checkpoint.round:
        msg = f"{site.name} has opened round {checkpoint.round} already; it does not train round {plan.round} again"
        raise ProtocolError(msg)
    if checkpoint.digest != plan.base_model:
        msg = f"{site.name} has another model than round {plan.round} starts from; it needs the sums that it missed"
        raise ProtocolError(msg)
    return checkpoint


def _make_update(site: Site, manifest: Manifest, plan: RoundPlan, checkpoint: Checkpoint) -> SignedUpdate:
    keys = _current_keys(site, plan)
    seed, masks = new_masks(site, manifest, plan)  # or a refusal, before anything is charged or takes time
    weight, bound, layout = manifest.weight(site.name), checkpoint.update_bound, checkpoint.model.layout
    algorithm = site.algorithm(manifest)
    with ready_to_be_charged(site, manifest, layout):
        left, packed, whole = None, recover(site, manifest, plan), None
        if packed is None and manifest.settings.shares_noise:
            packed = _pack_with_share(site, manifest, plan, checkpoint)
        elif packed is None:
            private = train_private(site, manifest, plan, checkpoint)
            shorten(private.vector, manifest.settings.encryption.update_norm)
            whole = private.vector.astype(np.float64) if algorithm.own else None
            packing = replace(manifest.packing, update_bound=bound)
            packed, left = pack(private, weight, packing, _randomness(manifest, site, plan, "rounding")), private.vector
        del checkpoint
        tagged = keys.tag.tag(mask(packed, masks), plan, site.name)
        made = keys.mac.authenticate(keys.decryption.encrypt(tagged, site.apply), plan, site.name)
    if left is not None:
        site.remainders.keep(plan, left)
        if whole is not None:
            at = local_round(site, algorithm, manifest, site.checkpoint(manifest, plan.run))
            keep_own(site, algorithm, at, plan, whole - left)
    signed = sign_update(
        made, plan, layout, site.name, site.signing_key,
        weight=weight, update_bound=bound, mask=commitment(seed) if seed else "",
        commitments=masks.commitments if masks else b"",
    )  # fmt: skip
    site.outbox.keep(plan, signed, seed)
    return signed


def train_private(site: Site, manifest: Manifest, plan: RoundPlan, checkpoint: Checkpoint) -> PrivateUpdate:
    """Steps 3 and 4, and the start of 5: charge the round, make its update, add what the last one left over.

    Raises:
        BudgetError: if the budget does not cover the round; nothing was read then.
    """
    made, charge = _charge_and_make(site, manifest, plan, checkpoint)
    update = privatise(made, charge)
    site.remainders.add_to(update.vector, plan.run)
    return update


def _pack_with_share(site: Site, manifest: Manifest, plan: RoundPlan, checkpoint: Checkpoint) -> PackedUpdate:
    """Train without noise, and pack with a share of it. Nothing is carried over: what is left out has no noise."""
    share = share_for(manifest, checkpoint.model)  # or a refusal, before anything is charged
    made, charge = _charge_and_make(site, manifest, plan, checkpoint)
    weight, randomness = manifest.weight(site.name), _randomness(manifest, site, plan, "rounding")
    return pack_with_share(made, charge, weight, manifest.packing, randomness, share.variance)


def _charge_and_make(site: Site, manifest: Manifest, plan: RoundPlan, checkpoint: Checkpoint) -> tuple[Update, Charge]:
    ledger, limit = site.account(manifest.settings)
    algorithm, name = site.algorithm(manifest), str(manifest.settings.strategy["name"])
    at = local_round(site, algorithm, manifest, checkpoint)  # what it reads may be damaged: better said uncharged
    charge = ledger.reserve(_release_of(manifest, plan), manifest.round_cost, limit)
    work, randomness = site.work(manifest.settings), _randomness(manifest, site, plan, "training")
    try:
        if not isinstance(work, Study) or manifest.settings.shares_noise:
            return work.release(manifest, checkpoint.model, randomness), charge
        return train_locally(name, algorithm, at, partial(work.release, manifest, checkpoint.model, randomness)), charge
    except KeyboardInterrupt:
        raise
    except BaseException:  # the server will see that it failed, as often as it asks
        ledger.fails(charge.release)
        raise


def _release_of(manifest: Manifest, plan: RoundPlan) -> Release:
    settings = manifest.settings
    purpose: Purpose = "evaluation" if settings.evaluation else "statistics" if settings.statistics else "training"
    return Release(plan.run, plan.round, plan.attempt, purpose)


def _current_keys(site: Site, plan: RoundPlan) -> EpochKeys:
    """Return the site's current keys, if the plan is for just those."""
    keys = site.keyring.current(site.roster.version)
    if keys is None or (keys.epoch, keys.fingerprint) != (plan.epoch, plan.keys):
        has = f"those of epoch {keys.epoch}" if keys else "none for this roster"
        msg = f"round {plan.round} is planned with keys {plan.keys[:12]} of epoch {plan.epoch}; {site.name} has {has}"
        raise ProtocolError(msg)
    return keys


def _randomness(manifest: Manifest, site: Site, plan: RoundPlan, purpose: str) -> Randomness:
    if manifest.settings.seed is None:
        return Randomness.fresh()
    return Randomness.seeded(manifest.settings.seed, site.name, plan.round, plan.attempt, purpose)
