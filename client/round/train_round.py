"""A round at a site, in the order on which its guarantees depend.

    1. open    the sums of earlier rounds that this site has missed
    2. check   the plan against the admitted manifest (`client.round.admission`), and then whatever could make the round
               fail (`client.round.readiness`)
    3. reserve the round's privacy spend, on disk, before any record is used
    4. train   with DP-SGD, as the run's algorithm says, or sum a survey's or an evaluation's records with noise
               → Update → PrivateUpdate
    5. encode  add the last update's residual, and scale to the run's norm if it has one; pack, mask, tag, encrypt,
               authenticate
               → PackedUpdate → … → AuthenticatedUpdate
               With shared noise, training adds none and there is no residual: packing adds the site's share.
    6. sign    → SignedUpdate, stored before it is sent; a retry sends the same bytes

If an attempt fails because a site is missing, the next attempt uses the same update under fresh masks. When the server
has summed all updates, the site opens their sum: see `client.round.aggregate`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from client.round.aggregate import open_sum
from client.round.masking import new_masks, recover
from client.round.norms import shorten
from client.round.readiness import ready_to_be_charged
from client.work.local import keep_own, local_round, train_locally
from client.work.training import Study
from privacy.codec.envelope import sign_update
from privacy.codec.packing import PackedStream, pack, pack_with_share
from privacy.codec.update import privatise
from privacy.crypto.masking import commitment, mask
from privacy.errors import ProtocolError
from privacy.failpoints import failpoint
from privacy.noise.noise_shares import share_for
from privacy.run.plan import check_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.round.admission import Round
    from client.site import Site
    from client.state.checkpoint import Checkpoint
    from privacy.codec.envelope import SignedUpdate
    from privacy.codec.update import PackedUpdate, PrivateUpdate, Update
    from privacy.crypto.key_epoch import EpochKeys
    from privacy.crypto.summation import EncryptedSum
    from privacy.ledger.ledger import Charge
    from privacy.run.plan import RoundPlan


def train_round(current: Round, missed: Sequence[EncryptedSum]) -> SignedUpdate:
    """Run steps 1 to 6 and return the signed update. Whatever fails, nothing uncharged leaves the site.

    Raises:
        CloisterError: as the functions of the steps say.
    """
    site, plan, ledger = current.site, current.plan, current.ledger
    for total in missed:
        open_sum(current, total)
    current.manifest.check_valid(time.time())
    update = site.outbox.find(plan)
    check_plan(plan, current.manifest, current.run, site.name, sent=update is not None)
    if update is None and ledger.has_left(current.release):
        msg = (
            f"{site.name} made its update of round {plan.round} and lost it; it does not make another for the same plan"
        )
        raise ProtocolError(msg)
    if update is None:
        # Keep no reference here, so that the checkpoint's memory is free before the update is encrypted.
        update = _make_update(current, _starting_point(current))
    failpoint("update-leaves")
    site.partial.forget(plan.run)  # from its noise, others could tell what the records add to the update
    ledger.leaves(current.release, sha256(update.header).hexdigest())
    failpoint("update-left")
    return update


def _starting_point(current: Round) -> Checkpoint:
    """Return the site's model, if the plan starts from it."""
    site, plan, checkpoint = current.site, current.plan, current.checkpoint()
    if plan.round <= checkpoint.round:
        msg = (
            f"{site.name} has already opened the sum of round {checkpoint.round}; it does not train round "
            f"{plan.round} again"
        )
        raise ProtocolError(msg)
    if checkpoint.digest != plan.base_model:
        msg = (
            f"{site.name} does not have the model from which round {plan.round} starts; it needs the sums that it "
            "missed"
        )
        raise ProtocolError(msg)
    return checkpoint


def _make_update(current: Round, checkpoint: Checkpoint) -> SignedUpdate:
    site, plan = current.site, current.plan
    keys = _current_keys(site, plan)
    seed, masks = new_masks(current)  # any refusal comes before charges and long work
    bound, layout = checkpoint.update_bound, checkpoint.model.layout
    with ready_to_be_charged(current, layout):
        packed, whole = recover(current), None
        if packed is None and current.settings.shares_noise:
            packed = _pack_with_share(current, checkpoint)
        elif packed is None:
            private = train_private(current, checkpoint)
            shorten(private.vector, current.settings.encryption.update_norm)
            whole = private.vector.astype(np.float64) if current.algorithm.own else None
            packing = replace(current.manifest.packing, update_bound=bound)
            packed = pack(private, current.weight, packing, current.randomness("rounding"))
        del checkpoint
        tagged = keys.tag.tag(mask(packed, masks), plan, site.name)
        encrypted = keys.mac.authenticate(keys.decryption.encrypt(tagged, site.apply), plan, site.name)
    failpoint("update-encrypted")
    if isinstance(packed, PackedStream):
        site.residuals.keep(plan, packed.residual)
        if whole is not None:
            keep_own(current, local_round(current, current.checkpoint()), whole - packed.residual)
    signed = sign_update(
        encrypted, plan, layout, site.name, site.signing_key,
        weight=current.weight, update_bound=bound, mask=commitment(seed) if seed else "",
        commitments=masks.commitments if masks else b"",
    )  # fmt: skip
    failpoint("update-signed")
    site.outbox.keep(plan, signed, seed)
    return signed


def train_private(current: Round, checkpoint: Checkpoint) -> PrivateUpdate:
    """Charge the round, make its update, and add the last update's residual (steps 3, 4 and the start of 5).

    Parameters that stay at this site are kept; they count once the round's sum is open.

    Raises:
        BudgetError: if the budget does not cover the round; no record was read.
    """
    trained, charge = _charge_and_make(current, checkpoint)
    update = privatise(trained, charge)
    current.site.own_parameters.keep(current.plan, trained.local)
    current.site.residuals.add_to(update.vector, current.run)
    return update


def _pack_with_share(current: Round, checkpoint: Checkpoint) -> PackedUpdate:
    """Train without noise, and pack with the site's share of it. There is no residual, since it would have no noise."""
    share = share_for(current.manifest, checkpoint.model)  # any refusal comes before the charge
    update, charge = _charge_and_make(current, checkpoint)
    return pack_with_share(
        update, charge, current.weight, current.manifest.packing, current.randomness("rounding"), share.variance
    )


def _charge_and_make(current: Round, checkpoint: Checkpoint) -> tuple[Update, Charge]:
    at = local_round(current, checkpoint)  # reads the site's own vectors before the charge
    charge = current.ledger.reserve(current.release, current.manifest.round_cost, current.limit)
    failpoint("round-charged")
    work, number, randomness = current.work, current.plan.round, current.randomness("training")
    try:
        if not isinstance(work, Study) or current.settings.shares_noise:
            return work.release(current.manifest, number, checkpoint.model, randomness), charge
        train = partial(work.release, current.manifest, number, checkpoint.model, randomness)
        if current.site.settings.training.checkpoint_steps:
            expires = current.manifest.expires
            train = partial(train, file=current.site.partial.file(charge, checkpoint.digest, work.digest(), expires))
        return train_locally(str(current.settings.strategy["name"]), current.algorithm, at, train), charge
    except KeyboardInterrupt:
        raise
    except BaseException:  # the failure is recorded, for every time that the server asks
        current.ledger.fails(charge.release)
        current.site.partial.forget(current.run)
        raise


def _current_keys(site: Site, plan: RoundPlan) -> EpochKeys:
    """Return the site's current keys, if they are the plan's."""
    keys = site.keyring.current(site.roster.version)
    if keys is None or (keys.epoch, keys.fingerprint) != (plan.epoch, plan.keys):
        has = f"those of key epoch {keys.epoch}" if keys else "none for this roster"
        msg = f"round {plan.round} needs the keys {plan.keys[:12]} of key epoch {plan.epoch}; {site.name} has {has}"
        raise ProtocolError(msg)
    return keys
