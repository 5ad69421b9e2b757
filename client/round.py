"""A round at a site, in the order that keeps its promises.

    1. open    what other rounds' sums this site has missed
    2. check   the plan against the manifest, the manifest against the site's policy
    3. reserve the round's privacy spend, on disk, before any record is read
    4. train   with DP-SGD → Update → PrivateUpdate
    5. encode  tag and encrypt → PackedUpdate → TaggedUpdate → EncryptedUpdate
    6. sign    → SignedUpdate, stored before it is sent; a retry sends these very bytes

and when the server has added all updates:

    7. check   who contributed to the sum; decrypt it; check its tag; apply the mean; keep the model and name its digest
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from client.checkpoint import Checkpoint
from client.dpsgd import train
from privacy.accounting import epsilon
from privacy.envelope import sign_update
from privacy.errors import AuthenticityError, CloisterError, ProtocolError
from privacy.ledger import Release
from privacy.manifest import open_manifest
from privacy.packing import pack, unpack
from privacy.plan import check_plan, read_plan
from privacy.policy import check_policy
from privacy.randomness import Randomness
from privacy.signing import sign
from privacy.summation import check_sum
from privacy.update import privatise
from strategies.averaging import average
from transport.contents import Readiness

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.site import Site
    from privacy.envelope import SignedUpdate
    from privacy.epoch import EpochKeys
    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum

log = logging.getLogger("cloister.agent")


@dataclass(frozen=True)
class Accepted:
    """A run that the coordinator signed and this site's policy allows."""

    manifest: Manifest
    run: str


def accept(site: Site, document: bytes) -> Accepted:
    """Check who signed a manifest, and hold it against the site's policy.

    Raises:
        AuthenticityError: if the coordinator did not sign it.
        RefusedError: if the policy does not allow it.
        ProtocolError: if it is for another roster than the site's.
    """
    manifest, run = open_manifest(document, site.roster.manifest_key)
    if manifest.roster_version != site.roster.version:
        msg = (
            f"the run is for roster {manifest.roster_version}, {site.name} has {site.roster.version}; "
            "bring the older one up to date"
        )
        raise ProtocolError(msg)
    check_policy(site.settings.policy, manifest, epsilon([manifest.run_cost], site.settings.budget.delta), site.name)
    return Accepted(manifest, run)


def get_ready(site: Site, document: bytes, node_id: int) -> Readiness:
    """Say whether this site can take part in a run, before anything is charged. No record is read for it.

    Raises:
        BudgetError: if what is left of the budget does not cover the rest of the run.
    """
    accepted = accept(site, document)
    checkpoint = site.checkpoint(accepted.manifest, accepted.run)
    if accepted.run not in site.ledger.runs():  # later, each round is held against the budget by itself
        site.ledger.check_plan(accepted.manifest.run_cost, site.settings.limit)
    model, keys = checkpoint.model, site.keyring.current(site.roster.version)
    unsigned = Readiness(
        site=site.name,
        model=model.digest,
        size=model.layout.size,
        layout=model.layout.digest,
        epoch=keys.epoch if keys else 0,
        keys=keys.fingerprint if keys else "",
        latest=site.keyring.latest,
        signature=b"",
    )
    signature = sign(site.signing_key, "readiness", unsigned.signed_part(accepted.run, node_id))
    return replace(unsigned, signature=signature)


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
    update = train(study.task, module, study.training, size, manifest, _randomness(manifest, site, plan, "training"))
    weight = manifest.weight(site.name)
    packed = pack(privatise(update, charge), weight, manifest.packing, _randomness(manifest, site, plan, "rounding"))
    encrypted = keys.decryption.encrypt(keys.tag.tag(packed, plan, site.name))
    return sign_update(encrypted, plan, checkpoint.model, site.name, weight, site.signing_key)


def open_sum(site: Site, accepted: Accepted, total: EncryptedSum) -> Checkpoint:
    """Step 7: decrypt a round's sum and arrive at the next model. A sum that was opened before changes nothing.

    Raises:
        ProtocolError: if the sum does not apply to the model that this site has.
        AuthenticityError: if it is not the sum that it is said to be; no other of its plan is opened then.
    """
    manifest, run = accepted.manifest, accepted.run
    plan, contributors = check_sum(total, run, manifest, site.roster)
    checkpoint = site.checkpoint(manifest, run)
    if plan.round <= checkpoint.round:
        return checkpoint
    if checkpoint.model.digest != plan.base_model:
        msg = f"the sum of round {plan.round} does not apply to {site.name}'s model of round {checkpoint.round}"
        raise ProtocolError(msg)
    if plan.digest in site.refused_sums:
        msg = f"{site.name} has refused a sum of round {plan.round} before; it opens no other of that plan"
        raise ProtocolError(msg)
    keys = site.keyring.find(plan.keys)
    try:
        coefficients = keys.decryption.decrypt_sum(total.c0, [part.seeds for part in total.contributions])
        keys.tag.check(coefficients, plan, contributors)
        mean = unpack(coefficients, checkpoint.model.layout.size, list(contributors.values()), manifest.packing)
    except CloisterError as error:
        # The server learns that the sum was refused, once, and nothing about why: the reason would tell of plaintexts.
        site.refused_sums.add(plan.digest)
        log.warning("round %d: %s", plan.round, error)
        msg = f"{site.name} does not open the sum of round {plan.round}: it is not that of its contributors' updates"
        raise AuthenticityError(msg) from error
    opened = Checkpoint(run, plan.round, average(checkpoint.model, mean))
    path = site.checkpoints.save(manifest.settings.name, opened)
    log.info("round %d of %d opened: %s", plan.round, manifest.settings.rounds, path)
    return opened


def evaluate(site: Site, manifest: Manifest, checkpoint: Checkpoint) -> dict[str, float]:
    """Return sums of metrics over the held-out records, and their number, as far as the site's policy shares them."""
    study, shared = site.study(manifest.settings.task), site.settings.policy.share
    inputs, targets = study.held_out
    if not len(inputs) or not set(shared) - {"epsilon"}:
        return {}
    module = study.load_into(study.module(manifest.settings.model_seed), checkpoint.model)
    module.eval()
    with torch.no_grad():
        outputs = module(inputs)
        found = {"loss": float(study.task.loss(outputs, targets)) * len(inputs)}
        found |= {name: float(values.sum()) for name, values in study.task.metrics(outputs, targets).items()}
    return {name: value for name, value in found.items() if name in shared} | {"records": float(len(inputs))}


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
