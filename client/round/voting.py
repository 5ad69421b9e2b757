"""Vote on a round's model, and undo the round if the sites' votes reject it: see `privacy.run.votes`.

    1. reserve   the vote's ε in the ledger of the held-out records, on disk before these are read
    2. answer    whether their mean loss grew by more than the run's tolerance, or is not finite
    3. flip      the answer with the run's probability, from this site's own randomness
    4. sign      and keep the vote: the same model gets the same vote, however often the server asks

A site without held-out records, or without the budget for a vote, casts none.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, LedgerError, MalformedError, ProtocolError
from privacy.failures import sentence
from privacy.ledger.ledger import Release
from privacy.noise.randomness import Randomness
from privacy.run.votes import Question, Vote, cast, check_rejected, respond
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from client.round.admission import AdmittedRun
    from client.site import Site
    from client.state.checkpoint import Checkpoint
    from privacy.codec.update import Model
    from privacy.run.settings import RunSettings

log = logging.getLogger("cloister.agent")


def vote(admitted: AdmittedRun, now: Checkpoint) -> Vote | None:
    """Return this site's vote on its current model, or None if it casts none."""
    site = admitted.site
    if admitted.settings.vote is None:
        return None
    try:
        before = admitted.before()
        if before.digest == now.digest or not _has_held_out(admitted):  # unchanged or undone
            return None
        question = Question(admitted.run, now.round, before.digest, now.digest)
        release = Release(question.run, question.round, 1, "vote")
        own_vote = _kept(site, question) or _answer(admitted, question, release, (before.model, now.model))
        site.held_out_ledger.leaves(release, sha256(own_vote.to_bytes()).hexdigest())
    except (CloisterError, OSError) as error:  # the round still gets the digest that it needs
        log.warning("round %d: %s casts no vote: %s", now.round, site.name, error)
        return None
    return own_vote


def undo(admitted: AdmittedRun, question: Question, votes: Mapping[str, Vote]) -> Checkpoint:
    """Restore the model before the last round, if the votes reject that round. A second call changes nothing.

    The round counts as done: its sum is not opened again, and what was charged stays charged.

    Raises:
        ProtocolError: if the run has no votes, they are not on the site's model, or they do not reject it.
        AuthenticityError: if a vote is not its site's on this question.
    """
    site, now = admitted.site, admitted.checkpoint()
    if now.digest == question.before:
        return now
    before = admitted.before()
    own = Question(admitted.run, now.round, before.digest, now.digest)
    if admitted.settings.vote is None or question != own:
        msg = (
            f"the votes do not compare {site.name}'s model of round {now.round} with the model before it; nothing "
            "was undone"
        )
        raise ProtocolError(msg)
    cohort = admitted.settings.cohort
    check_rejected(question, votes, cohort.sizes, cohort.minimum, site.roster)
    site.residuals.forget(admitted.run)
    undone = replace(before, round=now.round)
    site.models.go_back(admitted.settings, undone)
    log.warning("round %d: undone, because at least half of %d votes reject its model", now.round, len(votes))
    return undone


def _has_held_out(admitted: AdmittedRun) -> bool:
    return len(admitted.site.study(admitted.settings.task).held_out) > 0


def _answer(admitted: AdmittedRun, question: Question, release: Release, models: tuple[Model, Model]) -> Vote:
    """Charge a vote, make it and keep it.

    Raises:
        BudgetError: if the budget does not cover it.
        LedgerError: if a vote was already cast on this round.
    """
    site, settings = admitted.site, admitted.settings
    ledger = site.held_out_ledger
    if ledger.has_left(release):
        msg = f"{ledger.path}: the vote on round {question.round} was cast and lost; the site casts no other"
        raise LedgerError(msg)
    cost = replace(admitted.manifest.votes_cost, steps=1)
    charge = ledger.reserve(release, cost, site.settings.held_out_limit)
    worse = _is_worse(site, settings, *models)
    reject = respond(worse, charge.mechanism.pure, _randomness(site, settings, question))
    own_vote = cast(question, site.signing_key, reject=reject)
    note = asdict(question) | {"vote": own_vote.to_bytes().hex()}
    write_atomically(_path(site, question.run), json.dumps(note).encode())
    return own_vote


def _is_worse(site: Site, settings: RunSettings, before: Model, after: Model) -> bool:
    """Return whether the model got worse; True if that cannot be computed, since both answers are equally private."""
    tolerance = settings.vote.tolerance if settings.vote else 0.0
    try:
        study = site.study(settings.task)
        old, new = study.mean_loss(settings, before), study.mean_loss(settings, after)
    except Exception as error:  # a failure must not leave the site without noise
        log.warning(
            "the model could not be evaluated on the held-out records, which counts as worse: %s", sentence(error)
        )
        log.debug("vote", exc_info=error)
        return True
    log.info("loss on the held-out records: %.4f, before the round %.4f", new, old)
    return not math.isfinite(new) or new > old + tolerance


def _kept(site: Site, question: Question) -> Vote | None:
    """Return the vote that this site has kept for this question, or None."""
    try:
        note = json.loads(read_file(_path(site, question.run)))
        own_vote = Vote.from_bytes(bytes.fromhex(note.pop("vote")))
        return own_vote if note == asdict(question) else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, MalformedError):
        return None


def _path(site: Site, run: str) -> Path:
    return site.place.folder / "outbox" / f"{run[:16]}.vote"


def _randomness(site: Site, settings: RunSettings, question: Question) -> Randomness:
    if settings.seed is None:
        return Randomness.fresh()
    return Randomness.seeded(settings.seed, site.name, question.round, "vote")
