"""A site's vote on a round's model, and what it does when the votes of all reject it: see `privacy.run.votes`.

    1. reserve   the vote's ε, in the ledger of the records held out, on disk before they are read for it
    2. answer    whether the mean loss on them grew by more than the run's tolerance, or is no number
    3. turn      the answer over with the chance that the run says, from this site's own randomness
    4. sign      and keep: the same model gets the same vote, however often it is asked for

A site without held-out records, or without the budget for it, casts no vote.
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
    """Return this site's vote on the model that it has come to, if it casts one."""
    site = admitted.site
    if admitted.settings.vote is None:
        return None
    try:
        before = admitted.before()
        if before.digest == now.digest or not _has_held_out(admitted):  # nothing changed, or it was undone
            return None
        question = Question(admitted.run, now.round, before.digest, now.digest)
        release = Release(question.run, question.round, 1, "vote")
        made = _kept(site, question) or _answer(admitted, question, release, (before.model, now.model))
        site.held_out_ledger.leaves(release, sha256(made.to_bytes()).hexdigest())
    except (CloisterError, OSError) as error:  # the digest, which the round needs, is told all the same
        log.warning("round %d: %s casts no vote: %s", now.round, site.name, error)
        return None
    return made


def undo(admitted: AdmittedRun, question: Question, votes: Mapping[str, Vote]) -> Checkpoint:
    """Go back to the model before the last round, if the votes on it say so. Going back twice changes nothing.

    The round's number is passed, its sum is not opened again, and what was charged stays charged.

    Raises:
        ProtocolError: if the run has no votes, they are on another model than the site's, or do not reject it.
        AuthenticityError: if one is not that of its site on this question.
    """
    site, now = admitted.site, admitted.checkpoint()
    if now.digest == question.before:
        return now
    before = admitted.before()
    own = Question(admitted.run, now.round, before.digest, now.digest)
    if admitted.settings.vote is None or question != own:
        msg = f"the votes are not on {site.name}'s model of round {now.round} and the one before; nothing was undone"
        raise ProtocolError(msg)
    cohort = admitted.settings.cohort
    check_rejected(question, votes, cohort.sizes, cohort.minimum, site.roster)
    site.residuals.forget(admitted.run)
    undone = replace(before, round=now.round)
    site.models.go_back(admitted.settings, undone)
    log.warning("round %d: undone, as half of %d votes or more reject its model", now.round, len(votes))
    return undone


def _has_held_out(admitted: AdmittedRun) -> bool:
    return len(admitted.site.study(admitted.settings.task).held_out[0]) > 0


def _answer(admitted: AdmittedRun, question: Question, release: Release, models: tuple[Model, Model]) -> Vote:
    """Charge a vote, make it and keep it.

    Raises:
        BudgetError: if the budget does not cover it.
        LedgerError: if one was cast on this round already.
    """
    site, settings = admitted.site, admitted.settings
    ledger = site.held_out_ledger
    if ledger.has_left(release):
        msg = f"{ledger.path}: its vote on round {question.round} was cast and lost; it casts no other"
        raise LedgerError(msg)
    cost = replace(admitted.manifest.votes_cost, steps=1)
    charge = ledger.reserve(release, cost, site.settings.held_out_limit)
    worse = _is_worse(site, settings, *models)
    reject = respond(worse, charge.mechanism.pure, _randomness(site, settings, question))
    made = cast(question, site.signing_key, reject=reject)
    note = asdict(question) | {"vote": made.to_bytes().hex()}
    write_atomically(_path(site, question.run), json.dumps(note).encode())
    return made


def _is_worse(site: Site, settings: RunSettings, before: Model, after: Model) -> bool:
    """Return the answer; where it cannot be computed, "worse", as any answer is as private as the other."""
    tolerance = settings.vote.tolerance if settings.vote else 0.0
    try:
        study = site.study(settings.task)
        old, new = study.mean_loss(settings, before), study.mean_loss(settings, after)
    except Exception as error:  # that it failed must not be told without noise
        log.warning("the model could not be tried on the records held out, which counts as worse: %s", sentence(error))
        log.debug("vote", exc_info=error)
        return True
    log.info("loss on the records held out: %.4f, before the round %.4f", new, old)
    return not math.isfinite(new) or new > old + tolerance


def _kept(site: Site, question: Question) -> Vote | None:
    """Return the vote that this site has cast on this question, if it has, and still knows."""
    try:
        note = json.loads(read_file(_path(site, question.run)))
        found = Vote.from_bytes(bytes.fromhex(note.pop("vote")))
        return found if note == asdict(question) else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, MalformedError):
        return None


def _path(site: Site, run: str) -> Path:
    return site.place.folder / "outbox" / f"{run[:16]}.vote"


def _randomness(site: Site, settings: RunSettings, question: Question) -> Randomness:
    if settings.seed is None:
        return Randomness.fresh()
    return Randomness.seeded(settings.seed, site.name, question.round, "vote")
