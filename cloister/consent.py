"""What a signed run would do at a site, for the people there who decide about it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from client.state.approvals import Approvals
from client.task.installed import installed_digest
from cloister.accounts import planned
from cloister.views.observers import against_whom, cost_of_votes
from privacy.errors import CloisterError, PolicyError
from privacy.run.manifest import open_run
from privacy.run.policy import check_hours
from privacy.storage import read_document
from transport.pki import read_signing_key

if TYPE_CHECKING:
    from pathlib import Path

    from client.settings import SiteFolder
    from client.state.approvals import Decision
    from privacy.run.manifest import Manifest, SignedRun
    from privacy.run.roster import Roster


def approvals_of(place: SiteFolder) -> Approvals:
    """Open a site's decisions about runs.

    Raises:
        KeyFileError: if the site's signing key cannot be read.
    """
    return Approvals(place.folder, read_signing_key(place.path(place.settings.keys.signing_key)))


def read_signed(place: SiteFolder, run: Path) -> SignedRun:
    """Read a signed run: a file, or one that the site keeps, by the first digits of its digest.

    Raises:
        CloisterError: if there is none, or nobody signed it whom the roster allows to.
    """
    path = run if run.exists() else approvals_of(place).find(str(run))
    return read_document(path, lambda data: open_run(data, place.roster()), "name a signed run")


def describe(place: SiteFolder, signed: SignedRun) -> dict[str, Any]:
    """Return what a run would do at a site, whether the site's rules allow it, and what the site decided about it.

    Raises:
        CloisterError: if the site's roster, ledger or keys are wrong.
    """
    manifest, policy = signed.manifest, place.settings.policy
    settings, plan, roster = manifest.settings, planned(place, manifest, signed.signer, signed.digest), place.roster()
    digest, hours = installed_digest(settings.task), _reason(place)
    refusals = list(plan["refusals"])
    if digest is None:
        refusals.append(f"{settings.task} is not installed here; install its package")
    if _expired(manifest):
        refusals.append("the run has expired; have it signed again")
    return {
        "site": place.settings.site,
        "run": signed.digest,
        "name": settings.name,
        "signed_by": {
            "consortium": roster.consortium,
            "name": signed.signer.name,
            "role": signed.signer.role,
            "key": signed.signer.signing_key,
            "signers": None if policy.signers is None else list(policy.signers),
            "created": manifest.created,
            "expires": datetime.fromtimestamp(manifest.expires, UTC).isoformat(timespec="seconds"),
        },
        "task": {
            "name": settings.task,
            "listed": settings.task in policy.tasks,
            "digest": digest,
            "digest_in_policy": policy.task_digests.get(settings.task),
        },
        "purpose": settings.kind.purpose,
        "rounds": settings.rounds,
        "round_deadline_seconds": settings.cohort.round_deadline_seconds,
        "sites": sorted(settings.cohort.sizes),
        "minimum_cohort": settings.cohort.minimum,
        "masks": settings.encryption.collusion_resistant,
        "max_grad_norm": settings.privacy.max_grad_norm,
        "disclosed": list(policy.disclose),
        "recipients": {"run": list(settings.recipients), "policy": list(policy.recipients)},
        "cost": plan,
        **against_whom(manifest),
        **cost_of_votes(manifest),
        "hours": {"policy": policy.hours, "refusal": hours},
        "approval": {"needed": policy.approval, **_decided(approvals_of(place).decision(signed.digest))},
        "refusals": refusals,
        "allowed": not refusals,
    }


def kept_runs(place: SiteFolder) -> list[dict[str, Any]]:
    """Return the runs that a site keeps, the latest first, each with what the site decided about it.

    Raises:
        CloisterError: if roster or signing key cannot be read.
    """
    approvals, roster = approvals_of(place), place.roster()
    return [_listed(approvals, document, roster) for document in approvals.kept()]


def _listed(approvals: Approvals, document: bytes, roster: Roster) -> dict[str, Any]:
    try:
        signed = open_run(document, roster)
        decided = _decided(approvals.decision(signed.digest))
    except CloisterError as error:
        return {"run": None, "problem": str(error)}
    manifest = signed.manifest
    return {"run": signed.digest, "name": manifest.settings.name, "expired": _expired(manifest), **decided}


def _expired(manifest: Manifest) -> bool:
    return time.time() > manifest.expires


def _decided(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"decision": None, "time": None}
    return {"decision": "approved" if decision.approved else "withdrawn", "time": decision.time}


def _reason(place: SiteFolder) -> str | None:
    """Return why the site does not train at this time of day, or None."""
    try:
        check_hours(place.settings.policy, place.settings.site)
    except PolicyError as error:
        return str(error)
    return None
