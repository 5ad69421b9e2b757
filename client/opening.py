"""The end of a round at a site: check who contributed to the sum; decrypt it; check its tag; apply the mean.

Only then is the model kept, and its digest told. Whatever is wrong with a sum, the model stays as it was.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from client.checkpoint import Checkpoint
from client.norms import Lengths, context_of_sum
from privacy.agreement import absent_from
from privacy.errors import AuthenticityError, CloisterError, ProtocolError
from privacy.masking import open_pairs, open_seed, unmask_sum
from privacy.packing import unpack
from privacy.summation import check_sum
from strategies.averaging import average, next_bound

if TYPE_CHECKING:
    from client.acceptance import Accepted
    from client.site import Site
    from privacy.epoch import EpochKeys
    from privacy.header import UpdateHeader
    from privacy.manifest import Manifest
    from privacy.packing import Packing
    from privacy.plan import RoundPlan
    from privacy.summation import EncryptedSum
    from privacy.update import Update

log = logging.getLogger("cloister.agent")


def open_sum(site: Site, accepted: Accepted, total: EncryptedSum) -> Checkpoint:
    """Step 7: decrypt a round's sum and arrive at the next model. A sum that was opened before changes nothing.

    Raises:
        ProtocolError: if the sum does not apply to the model that this site has.
        AuthenticityError: if it is not the sum that it is said to be; no other of its plan is opened then.
    """
    manifest, run = accepted.manifest, accepted.run
    plan, headers = check_sum(total, run, manifest, site.roster)
    now = site.checkpoint(manifest, run)
    if plan.round <= now.round:
        return now
    if now.digest != plan.base_model:
        msg = f"the sum of round {plan.round} does not apply to {site.name}'s model of round {now.round}"
        raise ProtocolError(msg)
    if site.once.noted(run, _refusing(plan)):
        msg = f"{site.name} has refused a sum of round {plan.round} before; it opens no other of that plan"
        raise ProtocolError(msg)
    if any(header.update_bound != now.update_bound for header in headers.values()):
        msg = f"the sum of round {plan.round} is of updates in another range than {site.name}'s; it was not opened"
        raise ProtocolError(msg)
    packing = replace(manifest.packing, update_bound=now.update_bound)
    del now  # out of memory while the mean takes its place there
    lengths = _lengths(site, manifest, total, plan, headers, packing)
    mean = _mean(site, total, plan, headers, packing, lengths)
    del total
    bound = manifest.packing.update_bound
    if not manifest.settings.shares_noise:  # shares are of the range that was signed
        bound = next_bound(mean, len(headers), bound)
    opened = Checkpoint(run, plan.round, average(site.checkpoint(manifest, run).model, mean), bound)
    # Before the model is kept: what a crash leaves unwritten is written when the sum comes again.
    site.work(manifest.settings).opened(manifest, run, opened.model, headers)
    site.remainders.settle(plan, contributed=site.name in headers)
    opened, path = site.models.save(manifest.settings, opened)
    log.info("round %d of %d opened: %s", plan.round, manifest.settings.rounds, path)
    return opened


def _lengths(
    site: Site, manifest: Manifest, total: EncryptedSum, plan: RoundPlan, headers: dict[str, UpdateHeader],
    packing: Packing,
) -> Lengths | None:  # fmt: skip
    """Check that every contributor has proved how long its update is, if the run asks for it.

    Raises:
        AuthenticityError: naming who has not. Nothing was decrypted: the sum may come again with better proofs.
    """
    update_norm = manifest.settings.encryption.update_norm
    if update_norm is None:
        return None
    seeds, _ = shown_seeds(total, headers, site.keyring.find(plan.keys), plan)
    lengths = Lengths(context_of_sum(plan, headers, total.digest, seeds), headers, packing, update_norm)
    lengths.check(total, site)
    return lengths


def _mean(
    site: Site, total: EncryptedSum, plan: RoundPlan, headers: dict[str, UpdateHeader], packing: Packing,
    lengths: Lengths | None,
) -> Update:  # fmt: skip
    keys, header, weights = (
        site.keyring.find(plan.keys),
        next(iter(headers.values())),
        [each.weight for each in headers.values()],
    )
    try:
        nonces = {each.site: each.nonce for each in headers.values()}
        chunks = keys.mac.check(total.ciphertexts, plan, nonces)
        blocks = keys.tag.check(keys.decryption.decrypt(chunks, site.apply), plan, nonces)
        if header.mask:  # all have one, or none
            blocks = unmask_sum(blocks, *shown_seeds(total, headers, keys, plan), plan)
        mean = unpack(lengths.watch(blocks) if lengths else blocks, header.size, weights, packing)
        if lengths:
            lengths.check_sum()
    except CloisterError as error:
        # The server learns that the sum was refused, once, and nothing about why: the reason would tell of plaintexts.
        # On disk before it is said: a restarted agent would give a server that lies one more try.
        site.once.note(plan.run, _refusing(plan), "refused")
        log.warning("round %d: %s", plan.round, error)
        msg = f"{site.name} does not open the sum of round {plan.round}: it is not that of its contributors' updates"
        raise AuthenticityError(msg) from error
    return mean


def _refusing(plan: RoundPlan) -> str:
    return f"refusing the sums of plan {plan.digest}"


def shown_seeds(
    total: EncryptedSum, headers: dict[str, UpdateHeader], keys: EpochKeys, plan: RoundPlan
) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """Open the seeds that the sites showed: of each one's own mask, and of those shared with who is not in the sum."""
    own, pairs, absent = {}, {}, absent_from(plan, headers)
    for header, part in zip(headers.values(), total.contributions, strict=True):
        own[header.site] = open_seed(part.reveal, keys.secret, plan, header.site, header.mask)
        pairs[header.site] = open_pairs(part.pairs, absent, keys.secret, plan, header.site, header.pairs)
    return own, pairs
