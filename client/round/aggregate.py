"""The end of a round at a site: check the contributors and the MAC, decrypt, check the tag, apply the mean.

Only then does the site keep the model and send its digest. If anything is wrong with the sum, the model does not
change.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from client.round.norms import Lengths
from client.state.checkpoint import Checkpoint
from client.task.user_code import foreign
from privacy.codec.packing import unpack
from privacy.crypto.agreement import absent_from, accuse
from privacy.crypto.masking import open_pairs, open_seed, unmask_sum, verify_pairs, verify_seed
from privacy.crypto.signing import digest, sign
from privacy.crypto.summation import check_sum
from privacy.errors import AuthenticityError, CloisterError, ProtocolError
from privacy.failpoints import failpoint
from privacy.run.plan import read_plan
from strategies.advance import advance
from strategies.algorithm import Run
from strategies.averaging import next_bound
from transport.mask_messages import CODES, REFUSAL, SEEDS, VALUES, Refusal
from transport.run_messages import OPENED, Opened

if TYPE_CHECKING:
    from client.round.admission import AdmittedRun
    from client.site import Site
    from privacy.codec.header import UpdateHeader
    from privacy.codec.packing import Packing
    from privacy.codec.update import Update
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.plan import RoundPlan

log = logging.getLogger("cloister.agent")


class UnopenedError(AuthenticityError):
    """A sum is not the sum of its contributors' updates."""

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message)
        self.refusal = refusal


def open_sum(admitted: AdmittedRun, total: EncryptedSum) -> Checkpoint:
    """Decrypt a round's sum and return the next model. A sum that was opened before changes nothing.

    Raises:
        ProtocolError: if the sum does not apply to this site's model.
        UnopenedError: if it is not its contributors' sum, or the site has refused a sum of the plan before.
    """
    site, manifest = admitted.site, admitted.manifest
    plan, headers = check_sum(total, admitted.run, manifest, site.roster_under(read_plan(total.plan).keys))
    now = admitted.checkpoint()
    if plan.round <= now.round:
        return now
    if now.digest != plan.base_model:
        msg = f"the sum of round {plan.round} does not apply to {site.name}'s model of round {now.round}"
        raise ProtocolError(msg)
    if has_refused(site, plan):
        raise _unopened(
            site,
            plan,
            f"{site.name} has already refused a sum of round {plan.round}; it opens no other sum of that plan",
        )
    if any(header.update_bound != now.update_bound for header in headers.values()):
        msg = (
            f"the updates in the sum of round {plan.round} have another range than {site.name}'s; the sum was not "
            "opened"
        )
        raise ProtocolError(msg)
    packing = replace(manifest.packing, update_bound=now.update_bound)
    del now  # free its memory for the mean
    mean = _mean(site, total, plan, headers, packing, manifest.settings.encryption.update_norm)
    del total
    bound = manifest.packing.update_bound
    if not manifest.settings.shares_noise:  # shares of noise are made for the range in the manifest
        bound = next_bound(mean, len(headers), bound)
    now, weights = admitted.checkpoint(), {name: header.weight for name, header in headers.items()}
    with foreign(str(manifest.settings.strategy["name"]), "apply()"):
        algorithm, fixed = admitted.algorithm, Run.of(manifest.settings)
        model, state = advance(algorithm, fixed, now.model, now.state, mean, weights)
    opened = Checkpoint(admitted.run, plan.round, model, bound, state=state)
    failpoint("sum-decrypted")
    # Before the model is kept: after a crash, the sum comes again, and the rest is written then.
    admitted.work.opened(manifest, admitted.run, opened.model, headers)
    site.partial.forget(plan.run)
    site.residuals.settle(plan, contributed=site.name in headers)
    site.own.settle(plan, contributed=site.name in headers)
    site.own_parameters.settle(plan, contributed=site.name in headers)
    failpoint("sum-settled")
    opened, path = site.models.save(manifest.settings, opened)
    failpoint("sum-opened")
    log.info("round %d of %d opened: %s", plan.round, manifest.settings.rounds, path)
    return opened


def vouch(site: Site, plan: bytes, checkpoint: Checkpoint) -> Opened:
    """Sign the model that this site got from a plan's sum, so that no single site decides for the others."""
    opened = Opened(checkpoint.digest, checkpoint.update_bound)
    return replace(opened, signature=sign(site.signing_key, OPENED, opened.signed_part(digest("plan", plan))))


def has_refused(site: Site, plan: RoundPlan) -> bool:
    """Return whether this site has refused a sum of this plan."""
    return site.commitments.find(plan.run, _refusing(plan)) is not None


def _mean(
    site: Site, total: EncryptedSum, plan: RoundPlan, headers: dict[str, UpdateHeader], packing: Packing,
    update_norm: float | None,
) -> Update:  # fmt: skip
    keys, weights = site.keyring.find(plan.keys), [header.weight for header in headers.values()]
    size, liars = next(iter(headers.values())).size, list[str]()
    try:
        nonces = {header.site: header.nonce for header in headers.values()}
        chunks = keys.mac.check(total.ciphertexts, plan, nonces)
        blocks = keys.tag.check(keys.decryption.decrypt(chunks, site.apply), plan, nonces)
        if not any(header.mask for header in headers.values()):
            return unpack(blocks, size, weights, packing)
        own, pairs = shown_seeds(site, total, headers, plan, liars)
        blocks = unmask_sum(blocks, own, pairs, plan)
        if update_norm is None:
            return unpack(blocks, size, weights, packing)
        lengths = Lengths(plan, headers, total.digest, own, packing, update_norm)
        lengths.check(total, site, liars)
        mean = unpack(lengths.watch(blocks), size, weights, packing)
        lengths.check_sum()
    except CloisterError as error:
        # The server learns once that the sum was refused. Without masks it learns nothing about the reason; with masks,
        # only what a member did: the code (MAC) stops anything that the server does by itself.
        # This is on disk before it is sent, or a restarted agent would give a lying server one more try.
        for liar in liars:
            accuse(site.commitments, plan.run, liar, next(sha256(part.header).hexdigest() for part, header in
                   zip(total.contributions, headers, strict=True) if header == liar))  # fmt: skip
        why = SEEDS if liars else CODES if isinstance(error, AuthenticityError) else VALUES
        site.commitments.note(plan.run, _refusing(plan), f"{why} {','.join(liars)}")
        log.warning("round %d: %s", plan.round, error)
        msg = f"{site.name} does not open the sum of round {plan.round}: it is not the sum of its contributors' updates"
        raise _unopened(site, plan, msg) from error
    return mean


def _unopened(site: Site, plan: RoundPlan, message: str) -> UnopenedError:
    """Return the error for a sum of a refused plan. The refusal is the recorded one: its reply may have been lost."""
    why, _, liars = (site.commitments.find(plan.run, _refusing(plan)) or "").partition(" ")
    refusal = Refusal(why, liars.split(",") if liars else [])
    signature = sign(site.signing_key, REFUSAL, refusal.signed_part(plan.digest))
    return UnopenedError(message, replace(refusal, signature=signature))


def _refusing(plan: RoundPlan) -> str:
    return f"refusing the sums of plan {plan.digest}"


def shown_seeds(
    site: Site, total: EncryptedSum, headers: dict[str, UpdateHeader], plan: RoundPlan, liars: list[str]
) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """Open the seeds that the sites revealed: of their own masks, and of masks shared with sites absent from the sum.

    Raises:
        AuthenticityError: if a site did not sign its seeds; or if some signed seeds are not those to which the sites
            committed: `liars` then gets the names of all such sites.
    """
    keys = site.keyring.find(plan.keys)
    own, pairs, absent, roster = {}, {}, absent_from(plan, headers), site.roster_under(plan.keys)
    for header, part in zip(headers.values(), total.contributions, strict=True):
        key = roster.member(header.site).verification_key
        sealed = verify_seed(part.reveal, plan, header.mask, key)
        sealed_pairs = verify_pairs(part.pairs, plan, header.pairs, absent, key)
        try:
            own[header.site] = open_seed(sealed, keys.secret, plan, header.site, header.mask)
            pairs[header.site] = open_pairs(sealed_pairs, absent, keys.secret, plan, header.site, header.pairs)
        except AuthenticityError:
            liars.append(header.site)
    if liars:
        msg = f"{', '.join(liars)} signed seeds of masks that do not match their commitments"
        raise AuthenticityError(msg)
    return own, pairs
