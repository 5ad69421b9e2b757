"""The statement of a site's differential privacy: everything that a number ε needs beside it to mean something.

The fields are those of NIST SP 800-226 ("Guidelines for Evaluating Differential Privacy Guarantees") and of the
registry of deployments (arXiv 2509.13509): unit, adjacency, mechanism, accounting, observers, composition, what is
public, randomness, tests, and what is not covered. Every figure is from the ledger, the site's settings, or a manifest
that the coordinator signed. What nobody knows is said to be unknown.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from privacy.accounting import Mechanism, epsilon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.ledger import Budget
    from privacy.manifest import Manifest
    from privacy.policy import Policy

_LIBRARIES = ("cloister", "dp-accounting", "opacus", "torch", "numpy", "cryptography", "tenseal")


@dataclass(frozen=True)
class Entry:
    """One charge in the ledger."""

    run: str
    round: int
    time: str
    mechanism: Mechanism


@dataclass(frozen=True)
class Account:
    """A site, and what its ledger says of the people whom its records are about."""

    site: str
    lineage: str
    budget: Budget
    policy: Policy
    held_out: float
    entries: tuple[Entry, ...]
    head: str  # of the ledger
    ledger: str  # where it lies
    audit: Mapping[str, Any] | None  # the last one's report


@dataclass(frozen=True)
class StatedRun:
    """The run that a statement is about, if it is about one."""

    digest: str
    manifest: Manifest


def figures(mechanisms: Sequence[Mechanism], delta: float) -> dict[str, Any]:
    """Return ε of these by every accountant and adjacency that there is."""
    return {"epsilon": _finite(epsilon(mechanisms, delta)), "replace_one_epsilon": "not computed by this version"}


def state(account: Account, run: StatedRun | None) -> dict[str, Any]:
    """Return the statement, section by section: plain values that JSON has."""
    spent = figures([each.mechanism for each in account.entries], account.budget.delta)
    made = {
        "about": {
            "site": account.site,
            "people": account.lineage,
            "run": f"{run.manifest.settings.name} ({run.digest})" if run else "all runs in the ledger",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "guarantee": _guarantee(account, spent),
        "accounting": {
            "accountant": "privacy loss distributions, discretised upwards at 0.001 (dp-accounting)",
            "version": _version("dp-accounting"),
            "cross_check": "by Opacus's PRV and RDP accountants in Cloister's own tests, not for these figures",
        },
        "mechanism": _mechanism(account, run),
    }
    if run:
        made["run"] = _run(account, run)
    return made | {
        "observers": _observers(run),
        "composition": _composition(account),
        "public": _public(run),
        "randomness": {
            "noise_and_sampling": "AES-256 in counter mode under a new key of the operating system's in every round",
            "normal_values": "Box and Muller in double precision, added in float32: no defence against attacks on that",
            "rounding": "stochastic, to integers, from the same kind of source; after the noise, so at no cost",
        },
        "audit": _audit(account.audit),
        "ledger": {
            "file": account.ledger,
            "entries": len(account.entries),
            "first": account.entries[0].time if account.entries else None,
            "last": account.entries[-1].time if account.entries else None,
            "head": account.head,
        },
        "software": {name: _version(name) for name in _LIBRARIES},
        "not_covered": _not_covered(account),
    }


def _guarantee(account: Account, spent: Mapping[str, Any]) -> dict[str, Any]:
    budget = account.budget
    left = budget.epsilon - epsilon([each.mechanism for each in account.entries], budget.delta)
    return {
        "unit": "one record",
        "records_per_person": "not declared. A person with k records has k times this ε, at a larger δ",
        "adjacency": "add or remove one record",
        "delta": budget.delta,
        "epsilon_spent": spent["epsilon"],
        "epsilon_spent_replace_one": spent["replace_one_epsilon"],
        "epsilon_budget": _finite(budget.epsilon),
        "epsilon_left": _finite(max(0.0, left)),
        "epsilon_of_one_run_at_most": _finite(budget.run_epsilon),
        "enforced": "charged to the ledger, on disk, before records are read; over the budget, nothing is released",
    }


def _mechanism(account: Account, run: StatedRun | None) -> dict[str, Any]:
    steps: Counter[tuple[float, float]] = Counter()
    for each in account.entries:
        steps[each.mechanism.noise_multiplier, each.mechanism.sample_rate] += each.mechanism.steps
    norm = run.manifest.settings.privacy.max_grad_norm if run else None
    return {
        "name": "DP-SGD: gradients clipped record by record, Gaussian noise on each step's sum. In a survey, Gaussian "
        "noise on one sum of all records",
        "clipping_norm": norm or "as each run's manifest says; ε does not depend on it",
        "charged": [
            {"noise_multiplier": sigma, "sample_rate": rate, "steps": count}
            for (sigma, rate), count in sorted(steps.items())
        ],
        "sampling": "Poisson: each record is in each step by a coin of its own, drawn at the site; no shuffling",
        "noise": "the whole of it at this site, before encryption: ε needs no trust in other sites or in keys",
    }


def _run(account: Account, run: StatedRun) -> dict[str, Any]:
    settings, manifest = run.manifest.settings, run.manifest
    own = [each for each in account.entries if each.run == run.digest]
    delta = account.budget.delta
    rate, steps = manifest.run_cost.sample_rate, manifest.run_cost.steps
    return {
        "task": settings.task,
        "rounds": settings.rounds,
        "rounds_charged_here": len({each.round for each in own}),
        "charges_here": len(own),
        "noise_multiplier": manifest.noise_multiplier,
        "sample_rate": rate,
        "steps": steps,
        "epsilon_of_the_whole_run": figures([manifest.run_cost], delta)["epsilon"],
        "epsilon_charged_here": figures([each.mechanism for each in own], delta)["epsilon"],
        "delta": delta,
    }


def _observers(run: StatedRun | None) -> list[dict[str, str]]:
    masked = run is not None and run.manifest.settings.encryption.collusion_resistant
    together = "the sum of the others' updates" if masked else "this site's updates, unless a run has masks"
    full = "the ε above"
    return [
        {"who": "the server, the network", "sees": "ciphertexts, sizes and times", "epsilon": f"at most {full}"},
        {"who": "the other sites, and whoever has the model", "sees": "sums over all sites", "epsilon": full},
        {"who": "the server together with a site", "sees": together, "epsilon": full},
        {"who": "everybody else, with every key", "sees": "this site's updates", "epsilon": full},
    ]


def _composition(account: Account) -> dict[str, Any]:
    metrics = [name for name in account.policy.share if name != "epsilon"]
    leave = f"{', '.join(metrics)} over held-out records leave without noise, and are NOT in ε"
    return {
        "runs": len({each.run for each in account.entries}),
        "releases": len(account.entries),
        "over": "all runs, models, surveys and repeated attempts of this site on these people, in one ledger",
        "tuning": "each trial that was a run on these records is in; choosing by metrics that left is not",
        "metrics": leave if metrics and account.held_out else "none leave the site",
        "held_out": f"{100 * account.held_out:g} % of the records are never trained on",
        "several_sites": "a person with records at several sites: their ε add up, and no site can see that",
    }


def _public(run: StatedRun | None) -> list[str]:
    parts = ["the sites' names", "the task's code, with every range or constant in it", "all parameters of a run"]
    if run:
        sizes = ", ".join(f"{site} {count}" for site, count in run.manifest.settings.cohort.sizes.items())
        return [*parts, f"how many records each site declares: {sizes}"]
    return [*parts, "how many records each site declares"]


def _audit(report: Mapping[str, Any] | None) -> dict[str, Any]:
    if report is None:
        return {"result": "not audited; `cloister audit privacy SITE` does it"}
    return {
        "result": "passed" if report["passed"] else "REFUTED: " + ", ".join(
            each["name"] for each in report["checks"] if not each["held"]),
        "epsilon_claimed_for_the_audited_run": report["epsilon_claimed"],
        "lower_bound_implementation_test": report["epsilon_lower"],
        "lower_bound_formal": report["epsilon_formal"],
        "confidence": report["confidence"],
        "canaries": report["canaries"],
        "date": report["date"],
        "version": report["version"],
        "of": "this site's code on scratch, with made-up records; not of the releases that were charged",
    }  # fmt: skip


def _not_covered(account: Account) -> list[str]:
    parts = [
        "what can be concluded about a person from the model without their record: that is what a model is for",
        "whether the task follows the rules for tasks: a loss that mixes records breaks the guarantee",
        "whether the lineage names all files about the same people: two names are two budgets",
        "time and sizes of messages, declared sizes, refusals that say that a budget is spent",
        "this site's own machine, logs and staff; side channels; attacks on floating point",
        "a ledger that was replaced by an older copy: its chain shows edits, not lost last lines",
    ]
    if len(account.policy.share) > ("epsilon" in account.policy.share):
        parts.append("the metrics that the policy lets out, and the exact number of held-out records with them")
    return parts


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "infinite"  # JSON has no such number


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed here"
