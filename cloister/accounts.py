"""`cloister ledger`: what stands in a site's ledger, what other accountants say, and what a run would add."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.settings import read_site
from privacy.accounting import RDP, Relation, calibrate, epsilon
from privacy.config import read_toml
from privacy.errors import CloisterError, ConfigError, KeyFileError
from privacy.manifest import RunSettings, open_manifest, sign_manifest
from privacy.policy import check_policy
from privacy.roster import open_roster
from transport.pki import read_authority_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from client.settings import SiteFolder
    from privacy.accounting import Accountant, Mechanism
    from privacy.entries import Entry
    from privacy.manifest import Manifest

_AGREE = 0.02  # by how much PRV and PLD may differ


def report(path: Path) -> dict[str, Any]:
    """Return what stands in a site's ledger and what it comes to; infinite ε are None.

    Raises:
        CloisterError: if settings or ledger are wrong.
    """
    place = read_site(path)
    ledger, budget = place.ledger, place.settings.budget
    charges, group = ledger.entries().charges, ledger.records_per_person
    everything = [entry.mechanism for entry in charges]
    runs: dict[str, list[Entry]] = {}
    for entry in charges:
        runs.setdefault(entry.release.run, []).append(entry)
    spent = ledger.cost(everything, budget.delta)
    return {
        "site": ledger.site,
        "lineage": ledger.lineage,
        "records_per_person": group,
        "delta": budget.delta,
        "budget": _finite(budget.epsilon),
        "spent": _finite(spent),
        "spent_replace_one": _finite(epsilon(everything, budget.delta, relation=Relation.REPLACE_ONE, group=group)),
        "left": _finite(max(0.0, budget.epsilon - spent)),
        "cross_check": _cross_check(everything, budget.delta),
        "runs": [
            {
                "run": run,
                "purpose": entries[-1].release.purpose,
                "rounds": len({entry.release.round for entry in entries}),
                "steps": sum(entry.mechanism.steps for entry in entries),
                "epsilon": _finite(ledger.cost([entry.mechanism for entry in entries], budget.delta)),
                **_described(entries[-1]),
                "time": entries[0].time,
                "entries": [
                    {
                        "round": entry.release.round,
                        "attempt": entry.release.attempt,
                        "steps": entry.mechanism.steps,
                        **_described(entry),
                        "time": entry.time,
                        "head": entry.head,
                    }
                    for entry in entries
                ],
            }
            for run, entries in runs.items()
        ],
    }


def verify(path: Path) -> dict[str, Any]:
    """Return whose ledger it is and up to where its chain goes.

    Raises:
        CloisterError: if there is none, or it is not whole.
    """
    ledger = read_site(path).ledger
    if not ledger.path.exists():
        msg = f"{ledger.path}: there is no ledger; nothing was ever charged for this lineage, or the file is gone"
        raise ConfigError(msg)
    entries = ledger.entries()
    return {
        "ledger": str(ledger.path),
        "site": ledger.site,
        "lineage": ledger.lineage,
        "entries": len(entries.charges),
        "head": entries.head,
    }


def plan(path: Path, run: Path) -> dict[str, Any]:
    """Return what a run would cost a site, whether it would take part, and if not, which σ would do.

    Raises:
        CloisterError: if settings, ledger or run are wrong.
    """
    place = read_site(path)
    ledger, budget, policy = place.ledger, place.settings.budget, place.settings.policy
    manifest = _read_run(run, place)
    cost, delta = manifest.run_cost, budget.delta
    done, alone = ledger.mechanisms(), ledger.cost([manifest.run_cost], budget.delta)
    after = ledger.cost([*done, cost], delta)
    refusals = _refusals(
        lambda: check_policy(policy, manifest, alone, ledger.site),
        lambda: ledger.check_plan(cost, place.settings.limit),
    )

    def least(target: float, already: Sequence[Mechanism]) -> float:
        return calibrate(
            target, delta, cost.sample_rate, cost.steps,
            already=already, discrete=cost.discrete, group=ledger.records_per_person,
        )  # fmt: skip

    fits = None
    if refusals:
        try:
            limits = least(budget.epsilon, done), least(policy.maximum_epsilon, [])
            fits = max(policy.minimum_noise_multiplier, *limits)
        except ConfigError:
            fits = None
    return {
        "site": ledger.site,
        "lineage": ledger.lineage,
        "run": manifest.settings.name,
        "noise_multiplier": cost.noise_multiplier,
        "sample_rate": cost.sample_rate,
        "steps": cost.steps,
        "delta": delta,
        "cost": _finite(alone),
        "budget": _finite(budget.epsilon),
        "spent": _finite(ledger.cost(done, delta)),
        "spent_after": _finite(after),
        "left_after": _finite(max(0.0, budget.epsilon - after)),
        "allowed": not refusals,
        "refusals": refusals,
        "noise_multiplier_that_fits": fits,
    }


def _read_run(path: Path, place: SiteFolder) -> Manifest:
    """Read a signed run, or make of a run's settings what the coordinator would."""
    try:
        data = path.read_bytes()
        roster = place.path(place.settings.keys.roster)
        if data.startswith(b"cloister-signed-"):
            key = open_roster(roster.read_bytes(), read_authority_key(place.path(place.settings.keys.authority)))
            return open_manifest(data, key.manifest_key)[0]
    except OSError as error:
        msg = f"{error.filename}: {error.strerror}; name a run.toml, or a signed run, beside a site that has its roster"
        raise KeyFileError(msg) from error
    nobody = Ed25519PrivateKey.generate()
    signed = sign_manifest(read_toml(path, RunSettings), nobody, roster_version=1)
    return open_manifest(signed.to_bytes(), nobody.public_key())[0]


def _refusals(*checks: Callable[[], object]) -> list[str]:
    refusals = []
    for check in checks:
        try:
            check()
        except CloisterError as error:
            refusals.append(str(error))
    return refusals


def _cross_check(mechanisms: Sequence[Mechanism], delta: float) -> dict[str, Any]:
    """Hold the ledger's accountant against two others: for one record, and where noise is continuous."""
    prv, parts = _prv(), any(each.discrete for each in mechanisms)
    mechanisms = [each for each in mechanisms if not each.discrete]
    ours, above = epsilon(mechanisms, delta), epsilon(mechanisms, delta, accountant=RDP)
    beside = epsilon(mechanisms, delta, accountant=prv) if prv else None
    agree = above >= ours and (beside is None or beside == ours or abs(beside - ours) < _AGREE)
    return {"pld": _finite(ours), "rdp": _finite(above), "prv": None if beside is None else _finite(beside),
            "has_prv": prv is not None, "parts": parts, "agree": agree}  # fmt: skip


def _prv() -> Accountant | None:
    """Return Opacus' accountant where Opacus is installed."""
    try:
        from client.crosscheck import PRV  # noqa: PLC0415 - loads torch
    except ModuleNotFoundError:
        return None
    return PRV


def _described(entry: Entry) -> dict[str, Any]:
    of = entry.mechanism
    return {"noise_multiplier": of.noise_multiplier, "sample_rate": of.sample_rate, "discrete": of.discrete}


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
