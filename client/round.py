"""A round at a site, in the order that keeps its promises.

    1. open    what other rounds' sums this site has missed
    2. check   the plan against the manifest, the manifest against the site's policy
    3. reserve the round's privacy spend, on disk, before any record is read
    4. train   with DP-SGD → Update → PrivateUpdate
    5. encode  add what the last update left over; tag and encrypt → PackedUpdate → TaggedUpdate → EncryptedUpdate
    6. sign    → SignedUpdate, stored before it is sent; a retry sends these very bytes

When the server has added all updates, the site opens their sum: see `client.opening`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from client.acceptance import accept
from client.dpsgd import train
from client.opening import open_sum
from privacy.envelope import sign_update
from privacy.errors import ProtocolError
from privacy.ledger import Release
from privacy.packing import pack
from privacy.plan import check_plan, read_plan
from privacy.randomness import Randomness
from privacy.update import privatise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.checkpoint import Checkpoint
    from client.site import Site
    from privacy.envelope import SignedUpdate
    from privacy.epoch import EpochKeys
    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum


def train_round(site: Site, document: bytes, plan_bytes: bytes, missed: Sequence[EncryptedSum]) -> SignedUpdate:
    """Steps 1 to 6. See there for the errors; whatever fails, nothing leaves the site that was not charged."""
    accepted = accept(site, document)
    for total in missed:
        open_sum(site, accepted, total)
    plan = read_plan(plan_bytes)
    check_plan(plan, accepted.manifest, accepted.run, site.name)
    if (made := site.outbox.find(plan)) is not None:
        return made
    checkpoint = site.checkpoint(accepted.manifest, accepted.run)
    if plan.round <= checkpoint.round:
        msg = f"{site.name} has opened round {checkpoint.round} already; it does not train round {plan.round} again"
        raise ProtocolError(msg)
    if checkpoint.model.digest != plan.base_model:
        msg = f"{site.name} has another model than round {plan.round} starts from; it needs the sums that it missed"
        raise ProtocolError(msg)
    update = _make_update(site, accepted.manifest, plan, checkpoint)
    site.outbox.keep(plan, update)
    return update


def _make_update(site: Site, manifest: Manifest, plan: RoundPlan, checkpoint: Checkpoint) -> SignedUpdate:
    keys = _current_keys(site, plan)
    release = Release(plan.run, plan.round, plan.attempt)
    charge = site.ledger.reserve(release, manifest.round_cost, site.settings.limit)
    study, settings = site.study(manifest.settings.task), manifest.settings
    module = study.load_into(study.module(settings.model_seed), checkpoint.model)
    size = settings.cohort.sizes[site.name]
    train(study.task, module, study.training, size, manifest, _randomness(manifest, site, plan, "training"))
    update = privatise(study.difference(module, checkpoint.model), charge)
    site.remainders.add_to(update.vector, plan.run)
    weight, packing = manifest.weight(site.name), replace(manifest.packing, update_bound=checkpoint.update_bound)
    packed = pack(update, weight, packing, _randomness(manifest, site, plan, "rounding"))
    encrypted = keys.decryption.encrypt(keys.tag.tag(packed, plan, site.name), site.apply)
    site.remainders.keep(plan, update.vector)
    return sign_update(
        encrypted, plan, checkpoint.model, site.name, site.signing_key,
        weight=weight, update_bound=packing.update_bound,
    )  # fmt: skip


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
