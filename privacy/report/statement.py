"""Build the statement of a site's differential privacy: everything needed to interpret its ε.

The fields follow NIST SP 800-226 ("Guidelines for Evaluating Differential Privacy Guarantees") and the registry of
deployments (arXiv 2509.13509): unit, adjacency, mechanism, accounting, observers, composition, what is public,
randomness, tests, and what is not covered. Every figure comes from the site's ledgers, its settings, or a signed
manifest. The statement says explicitly what is unknown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from privacy.clock import date
from privacy.ledger.balance import excessive, without_infinity
from privacy.report.mechanisms import against_ledger, against_run, mechanism, randomness, stated_run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from privacy.ledger.balance import Balance
    from privacy.ledger.entries import Entry
    from privacy.report.mechanisms import StatedRun
    from privacy.run.policy import Policy

_LIBRARIES = ("cloister", "opacus", "torch", "numpy", "scipy", "cryptography", "tenseal")


@dataclass(frozen=True)
class Account:
    """A site's ledgers, policy and last audit."""

    trained: Balance
    held_out: Balance
    share_held_out: float  # of the records
    policy: Policy
    audit: Mapping[str, Any] | None  # report of the last one
    records: int = 0  # approximate number of the site's records; 0 if unknown

    @property
    def charges(self) -> tuple[Entry, ...]:
        """All charges, to either ledger."""
        return (*self.trained.entries.charges, *self.held_out.entries.charges)

    def of(self, run: StatedRun) -> Balance:
        """Return the balance to which a run is charged."""
        return self.held_out if run.manifest.settings.kind.held_out else self.trained


def state(account: Account, run: StatedRun | None) -> dict[str, Any]:
    """Return the statement, section by section, as JSON values."""
    ledger, charges, disclosed = account.trained.ledger, account.charges, account.policy.disclose
    trained, held_out = account.trained.figures(), account.held_out.figures()
    statement = {
        "about": {
            "site": ledger.site,
            "people": ledger.lineage,
            "run": f"{run.manifest.settings.name} ({run.digest})" if run else "all runs in the ledgers",
            "date": date(),
        },
        "guarantee": _guarantee(account, run),
        "spending": [_spending("trained on, or in surveys", trained), _spending("held out", held_out)],
        "accounting": _accounting(trained, held_out),
        "mechanism": mechanism(charges, run),
    }
    if run:
        statement["run"] = stated_run(run, account.of(run))
    statement |= {
        "observers": against_run(run, account.of(run), disclosed) if run else against_ledger(charges, disclosed),
        "composition": _composition(account),
        "public": _public(run),
        "randomness": randomness(charges, run),
        "audit": _audit(account.audit),
        "ledgers": {"trained_on": _ledger(account.trained), "held_out": _ledger(account.held_out)},
        "software": {name: _version(name) for name in _LIBRARIES},
        "not_covered": _not_covered(account),
    }
    return without_infinity(statement, "infinite")


def _guarantee(account: Account, run: StatedRun | None) -> dict[str, Any]:
    records, site = account.trained.ledger.records_per_person, account.trained.ledger.site
    declared = run.manifest.settings.cohort.sizes.get(site, 0) if run else 0
    known = declared or account.records
    enough = f"below 1 over the number of records, {known:,}" if known else "not compared with a number of records"
    return {
        "unit": "one person of this site",
        "records_per_person": records,
        "adjacency": f"adding or removing one person with {_records(records)}, leaving their places empty; also "
        "stated for replacing one person by another",
        "delta": account.trained.limit.delta,
        "delta_is": excessive(account.trained.limit.delta, known) or enough,
        "epsilon_of_one_run_at_most": account.trained.limit.run_epsilon,
        "enforced": "charged to a ledger on disk before records are read; nothing is released over the budget",
    }


def _spending(people: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "people": people,
        "epsilon_spent": figures["spent"],
        "epsilon_spent_replace_one": figures["spent_replace_one"],
        "epsilon_budget": figures["budget"],
        "epsilon_left": figures["left"],
        "delta": figures["delta"],
    }


def _accounting(trained: Mapping[str, Any], held_out: Mapping[str, Any]) -> dict[str, Any]:
    checks = [("trained on, or in surveys", trained["cross_check"]), ("held out", held_out["cross_check"])]
    return {
        "accountant": "continuous noise: privacy loss distributions, discretised upwards (PLD); discrete noise: Rényi "
        "divergences (RDP). Over both: RDP, or PLD and RDP at half of δ each, whichever is less. Votes add "
        "their own ε",
        "version": f"cloister {_version('cloister')}, whose tests hold both against Google's dp-accounting",
        "cross_check": [
            {
                "people": people,
                "epsilon_pld": values["pld"],
                "epsilon_rdp": values["rdp"],
                "epsilon_prv": f"none: {values['why_no_prv']}" if values["why_no_prv"] else values["prv"],
                "agree": values["agree"],
            }
            for people, values in checks
        ],
        "cross_check_of": "one record, added or removed, in all steps with continuous noise; RDP must be above PLD, "
        "Opacus's PRV within 0.02 of it",
        "agree": all(values["agree"] for _, values in checks),
    }


def _composition(account: Account) -> dict[str, Any]:
    charges, trained, held_out = account.charges, account.trained, account.held_out
    metrics = [name for name in account.policy.disclose if name != "epsilon"]
    leave = f"{', '.join(metrics)} over held-out records leave the site without noise and are NOT covered by ε"
    purposes = Counter(charge.release.purpose for charge in charges)
    both = trained.cost([*trained.mechanisms, *held_out.mechanisms])
    return {
        "runs": len({charge.release.run for charge in charges}),
        "releases": {purpose: purposes[purpose] for purpose in ("training", "statistics", "evaluation", "vote")},
        "over": "all runs, models, surveys and repeated attempts of this site on these people, in one ledger; "
        "evaluations and votes on those held out, in another",
        "tuning": "every trial that was a run on these records is included; choosing by metrics without noise is not",
        "metrics": leave if metrics and account.share_held_out else "none leave the site without noise and a charge",
        "held_out": f"{100 * account.share_held_out:g} % of the records, by their place in the file. A person whose "
        "records are all on one side has that side's ε. A person whose records are on both sides, or changed sides "
        "as the file grew, has:",
        "epsilon_on_both_sides": both["epsilon"],
        "epsilon_on_both_sides_replace_one": both["epsilon_replace_one"],
        "several_sites": "for a person with records at several sites, the sites' ε add up; no site can see that",
    }


def _public(run: StatedRun | None) -> list[str]:
    parts = ["the sites' names, and which of them took part", "the task's code, with every range or constant in it",
             "all parameters of a run", "how large messages are, and when they are sent"]  # fmt: skip
    sizes = run.manifest.settings.cohort.sizes.items() if run else ()
    listed = ": " + ", ".join(f"{site} {count}" for site, count in sizes) if sizes else ""
    return [*parts, f"how many records each site declares{listed}"]


def _audit(report: Mapping[str, Any] | None) -> dict[str, Any]:
    if report is None:
        return {"result": "not audited; run `cloister audit privacy SITE`"}
    return {
        "result": "passed" if report["passed"] else "REFUTED: " + ", ".join(
            check["name"] for check in report["checks"] if not check["held"]),
        "epsilon_claimed_for_the_audited_run": report["epsilon_claimed"],
        "epsilon_lower_bound_implementation_test": report["epsilon_lower"],
        "epsilon_lower_bound_formal": report["epsilon_formal"],
        "confidence": report["confidence"],
        "canaries": report["canaries"],
        "date": report["date"],
        "version": report["version"],
        "of": "this site's code in a scratch folder, with made-up records and local noise; not the charged releases "
            "themselves",
    }  # fmt: skip


def _ledger(balance: Balance) -> dict[str, Any]:
    charges = balance.entries.charges
    return {
        "of": balance.ledger.lineage,
        "entries": len(charges),
        "first": charges[0].time if charges else None,
        "last": charges[-1].time if charges else None,
        "head": balance.entries.head,
        "signed_by": balance.ledger.public_key.public_bytes_raw().hex(),
        "file": str(balance.ledger.path),
    }


def _not_covered(account: Account) -> list[str]:
    records = account.trained.ledger.records_per_person
    parts = [
        "what the model tells about a person without using their record: that is what a model is for",
        f"people with more than {records} records: the site states this maximum, and nothing counts the records",
        "a task that deceives its guard, which tests it on made-up records for anything that mixes records",
        "whether the lineage names all files about the same people: two lineages have two budgets",
        "time and sizes of messages, declared sizes, refusals that reveal a spent budget",
        "this site's own machine, logs and staff; side channels; rounding of gradients in float32",
        "a ledger replaced by an older copy, if neither the site nor an honest server has a later head",
        "a ledger rewritten by someone with this site's signing key",
    ]
    if any(charge.mechanism.discrete for charge in account.charges):
        parts += [
            "shared noise, if more sites than a run declares omit or reveal their shares",
            "the distance of a sum of shares from a discrete Gaussian (below 10⁻²⁶⁰), and its cut tails (below 2⁻¹⁰⁰)",
        ]
    if len(account.policy.disclose) > ("epsilon" in account.policy.disclose):
        parts.append("the metrics that the policy allows to leave")
    return parts


def _records(count: int) -> str:
    return "one record" if count == 1 else f"up to {count} records"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed here"
