"""`cloister ledger`: the charges in a site's ledgers, a check by other accountants, and the cost of a planned run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.settings import read_site
from client.task.installed import check_installed
from privacy.accounting.calibration import calibrate
from privacy.config import read_toml
from privacy.errors import CloisterError, ConfigError, LedgerError, RefusedError
from privacy.ledger.balance import Balance, excessive, without_infinity
from privacy.run.manifest import open_manifest, open_run
from privacy.run.new_manifest import sign_manifest
from privacy.run.policy import check_policy, check_recipients, check_signer
from privacy.run.settings import RunSettings
from privacy.storage import open_file, read_document
from strategies.registry import check_strategy, completed
from transport.pki import read_signing_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from client.settings import SiteFolder
    from privacy.accounting.accounting import Accountant, Mechanism
    from privacy.ledger.entries import Entry
    from privacy.ledger.ledger import Ledger
    from privacy.run.manifest import Manifest
    from privacy.run.people import Person


def balances(place: SiteFolder) -> tuple[Balance, Balance]:
    """Read a site's two ledgers, for training and held-out records; with the PRV accountant if Opacus is installed.

    Raises:
        LedgerError: if one cannot be trusted.
    """
    settings, second = place.settings, _prv()
    trained, held_out = place.ledger, place.held_out_ledger
    return (
        Balance(trained, settings.limit, trained.entries(), second),
        Balance(held_out, settings.held_out_limit, held_out.entries(), second),
    )


def report(path: Path) -> dict[str, Any]:
    """Return the charges in a site's ledgers and their total ε; an infinite ε is None.

    Raises:
        CloisterError: if settings or ledgers are wrong.
    """
    place = read_site(path)
    trained, held_out = (balance.figures() | {"runs": _runs(balance)} for balance in balances(place))
    warning = excessive(place.settings.budget.delta, records_of(place))
    return without_infinity(
        {"site": place.settings.site, **trained, "delta_warning": warning, "held_out": held_out}, None
    )


def records_of(place: SiteFolder) -> int:
    """Return the approximate number of a site's records: the lines of its CSV file; 0 if it has no readable one."""
    path = place.path(place.settings.data.file)
    if path.suffix.lower() != ".csv":
        return 0
    try:
        with open_file(path) as file:
            return max(0, sum(1 for _ in file) - 1)  # the first line names columns
    except OSError:
        return 0


def _runs(balance: Balance) -> list[dict[str, Any]]:
    runs: dict[str, list[Entry]] = {}
    for entry in balance.entries.charges:
        runs.setdefault(entry.release.run, []).append(entry)
    return [
        {
            "run": run,
            "purpose": entries[-1].release.purpose,
            "rounds": len({entry.release.round for entry in entries}),
            "steps": sum(entry.mechanism.steps for entry in entries),
            "epsilon": balance.ledger.cost([entry.mechanism for entry in entries], balance.limit.delta),
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
    ]


def verify(path: Path, heads: Sequence[str] = ()) -> dict[str, Any]:
    """Verify a site's ledgers; return their owner, length and head, and the heads that they were checked against.

    Args:
        path: the site's settings or folder.
        heads: heads that were written down elsewhere; each must be in a ledger.

    Raises:
        CloisterError: if there is no ledger, or one is incomplete, not signed by the site, or older than a head.
    """
    place = read_site(path)
    ledgers = [file for file in (place.ledger, place.held_out_ledger) if file.path.exists() or file.last_kept()]
    if not ledgers:
        msg = (
            f"{place.ledger.path}: there is no ledger: nothing was ever charged for this lineage, or the file is "
            "missing"
        )
        raise ConfigError(msg)
    verified = [_verified(ledger) for ledger in ledgers]
    had = set().union(*(ledger.entries().heads for ledger in ledgers))
    for head in heads:
        if head.lower() not in had:
            msg = (
                f"no ledger of {place.settings.site} contains the head {head}: the ledger is an older copy, or the "
                "head belongs to another site"
            )
            raise LedgerError(msg)
    return {"ledgers": verified, "heads": list(heads)}


def _verified(ledger: Ledger) -> dict[str, Any]:
    entries = ledger.entries()
    return {
        "ledger": str(ledger.path),
        "site": ledger.site,
        "lineage": ledger.lineage,
        "entries": len(entries.charges),
        "head": entries.head,
        "signed_by": ledger.public_key.public_bytes_raw().hex(),
        "last_head_kept": ledger.last_kept(),
        "adopted": [
            {"entries": adoption.entries, "signed_by": adoption.key or None, "time": adoption.time}
            for adoption in entries.adoptions
        ],
    }


def adopt(path: Path, old_key: Path | None) -> list[dict[str, Any]]:
    """Sign a site's ledgers with its current key, and return them.

    Args:
        path: the site's settings or folder.
        old_key: the key that they were signed with; None to accept them unverified.

    Raises:
        CloisterError: if there is no ledger, or one is incomplete or not signed with the old key.
    """
    place = read_site(path)
    before = read_signing_key(old_key).public_key() if old_key else None
    ledgers = [file for file in (place.ledger, place.held_out_ledger) if file.path.exists()]
    if not ledgers:
        msg = f"{place.ledger.path}: there is no ledger to adopt; copy it there first"
        raise ConfigError(msg)
    for ledger in ledgers:
        ledger.adopt(before)
    return [_verified(ledger) for ledger in ledgers]


def plan(path: Path, run: Path) -> dict[str, Any]:
    """Return a run's cost to a site, whether the site would take part, and if not, which σ would suffice.

    Raises:
        CloisterError: if settings, ledger or run are wrong.
    """
    place = read_site(path)
    return planned(place, *_read_run(run, place))


def planned(place: SiteFolder, manifest: Manifest, signer: Person | None = None, digest: str = "") -> dict[str, Any]:
    """Return a run's cost to a site, whether the site would take part, and if not, which σ would suffice.

    Args:
        place: the site.
        manifest: the run's.
        signer: who signed it; None if nobody has yet.
        digest: identifies it once it is signed; rounds of it that the site has been charged for cost nothing again.

    Raises:
        CloisterError: if the ledger cannot be trusted.
    """
    policy, task = place.settings.policy, manifest.settings.task
    ledger, budget = place.account(manifest.settings.kind)
    cost, votes, delta = manifest.run_cost, manifest.votes_cost, budget.delta
    done, alone = ledger.mechanisms(), ledger.cost([manifest.run_cost], budget.delta)
    charged = {entry.release.round for entry in ledger.entries().charges if entry.release.run == digest}
    left = max(0, manifest.settings.rounds - len(charged))
    rest = replace(cost, steps=cost.steps // manifest.settings.rounds * left)
    after = ledger.cost([*done, rest] if left else done, delta)
    refusals = _refusals(
        *([lambda: check_signer(policy, signer, ledger.site)] if signer else []),
        *(
            [lambda: check_recipients(policy, manifest.settings, place.roster(), ledger.site)]
            if manifest.settings.recipients
            else []
        ),
        lambda: check_policy(policy, manifest, alone, ledger.site),
        lambda: check_strategy(policy, manifest.settings, ledger.site),
        *([lambda: check_installed(policy, task, ledger.site)] if task in policy.tasks else []),
        *([lambda: ledger.check_plan(rest, budget)] if left else []),
        *([lambda: place.held_out_ledger.check_plan(votes, place.settings.held_out_limit)] if votes.pure else []),
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
    return without_infinity({
        "site": ledger.site,
        "lineage": ledger.lineage,
        "run": manifest.settings.name,
        "noise_multiplier": cost.noise_multiplier,
        "sample_rate": cost.sample_rate,
        "steps": cost.steps,
        "delta": delta,
        "delta_warning": excessive(delta, manifest.settings.cohort.sizes.get(ledger.site, 0)),
        "cost": alone,
        "rounds_charged": len(charged),
        "votes": place.held_out_ledger.cost([votes], delta) if votes.pure else 0.0,  # to held-out records
        "budget": budget.epsilon,
        "spent": ledger.cost(done, delta),
        "spent_after": after,
        "left_after": max(0.0, budget.epsilon - after),
        "allowed": not refusals,
        "refusals": refusals,
        "noise_multiplier_that_fits": fits,
    }, None)  # fmt: skip


def _read_run(path: Path, place: SiteFolder) -> tuple[Manifest, Person | None]:
    """Read a signed run, and who signed it; or make one from a run's settings, which nobody has signed."""

    def opened(data: bytes) -> tuple[Manifest, Person | None]:
        if data.startswith(b"cloister-signed-"):
            run = open_run(data, place.roster())
            return run.manifest, run.signer
        nobody, settings = Ed25519PrivateKey.generate(), read_toml(path, RunSettings)
        with suppress(RefusedError):  # reported by the caller; do not import what the policy forbids
            check_strategy(place.settings.policy, settings, place.settings.site)
            settings = completed(settings)
        signed = sign_manifest(settings, nobody, roster_version=1)
        return open_manifest(signed.to_bytes(), nobody.public_key())[0], None

    return read_document(path, opened, "name a run.toml, or a signed run")


def _refusals(*checks: Callable[[], object]) -> list[str]:
    refusals = []
    for check in checks:
        try:
            check()
        except CloisterError as error:
            refusals.append(str(error))
    return refusals


def _prv() -> Accountant | None:
    """Return Opacus's PRV accountant, or None if Opacus is not installed."""
    try:
        from client.dpsgd.crosscheck import PRV  # noqa: PLC0415 - loads torch
    except ModuleNotFoundError:
        return None
    return PRV


def _described(entry: Entry) -> dict[str, Any]:
    of = entry.mechanism
    if of.pure:
        return {"noise_multiplier": None, "sample_rate": None, "discrete": False, "epsilon_of_each": of.pure}
    return {"noise_multiplier": of.noise_multiplier, "sample_rate": of.sample_rate, "discrete": of.discrete}
