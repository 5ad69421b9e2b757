"""State a site's mechanisms for its privacy statement: which noise is added where, and who sees what at which ε."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privacy.noise.noise_shares import observers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.ledger.balance import Balance
    from privacy.ledger.entries import Entry
    from privacy.run.manifest import Manifest

_LOCAL, _SHARED = "local", "shared"
_WHERE = {
    _LOCAL: "local: this site adds all of it before encryption. The ε requires no trust in other sites, servers or "
    "keys",
    _SHARED: "shared (discrete): every site adds a share before encryption; only the sum has all of it. The ε holds "
    "only while the masks do, and while no more sites than the run declares reveal or omit their shares. σ is over C "
    "and the most that rounding may add to it",
}
_DRAWN = {
    _LOCAL: "normal values by the Box-Muller method in double precision, added in float32; not protected against "
    "floating-point attacks",
    _SHARED: "integers of the discrete Gaussian by exact rejection sampling, added to integers, without floating point",
}
_ROUNDING = {
    _LOCAL: "stochastic, to integers, from the same kind of source; after the noise, so it costs no ε",
    _SHARED: "stochastic, to integers, before the noise; extra noise covers what it adds to a record's influence",
}


@dataclass(frozen=True)
class StatedRun:
    """The run that a statement is about."""

    digest: str
    manifest: Manifest


def mechanism(charges: Sequence[Entry], run: StatedRun | None) -> dict[str, Any]:
    """State the mechanisms and all their charges."""
    steps: Counter[tuple[str, bool, float, float]] = Counter()
    votes: Counter[float] = Counter()
    for charge in charges:
        of = charge.mechanism
        if of.pure:
            votes[of.pure] += of.steps
            continue
        steps[charge.release.purpose, of.discrete, of.noise_multiplier, of.sample_rate] += of.steps
    return {
        "training": "DP-SGD: in every step, each record's gradient is clipped to norm C and Gaussian noise of standard "
        "deviation σC is added to their sum",
        "statistics_and_evaluation": "one sum over all records, each a vector of norm 1 at most, with Gaussian noise "
        "of standard deviation σ",
        "vote": "one bit about all held-out records, flipped with probability 1/(1 + e^ε): randomised response",
        "clipping_norm": (_norm(run) if run else None) or "as each run's manifest says; ε does not depend on it",
        "charged": [
            {"for": purpose, "noise_multiplier": sigma, "sample_rate": rate, "steps": count, "discrete": discrete}
            for (purpose, discrete, sigma, rate), count in sorted(steps.items())
        ],
        "votes": [{"epsilon_of_each": epsilon, "count": count} for epsilon, count in sorted(votes.items())] or "none",
        "sampling": "Poisson: this site draws independently, for each record and training step, whether the record "
        "is in the batch; no shuffling; an empty batch also gets noise and counts. Statistics and evaluations use "
        "each record once",
        "enforced_by": "this site's own program: it takes σ, C, q and the number of steps from a signed "
        "manifest that the site's policy allowed; no message can change them",
        "noise": [_WHERE[kind] for kind in _kinds(charges, run)],
    }


def randomness(charges: Sequence[Entry], run: StatedRun | None) -> dict[str, Any]:
    """State where random numbers come from."""
    kinds = _kinds(charges, run)
    return {
        "source": "AES-256 in counter mode under a new key from the operating system in every round, for noise, "
        "sampling and rounding",
        "noise": [f"{kind}: {_DRAWN[kind]}" for kind in kinds],
        "rounding": [f"{kind}: {_ROUNDING[kind]}" for kind in kinds],
    }


def stated_run(run: StatedRun, balance: Balance) -> dict[str, Any]:
    """State a run's parameters, its cost, and how much of it was charged here."""
    settings, cost = run.manifest.settings, run.manifest.run_cost
    own = [charge for charge in balance.entries.charges if charge.release.run == run.digest]
    whole, here = balance.cost([cost]), balance.cost([charge.mechanism for charge in own])
    return {
        "task": settings.task,
        "charged_to": balance.ledger.lineage,
        "rounds": settings.rounds,
        "rounds_charged_here": len({charge.release.round for charge in own}),
        "charges_here": len(own),
        "noise": f"shared; the sum of {settings.honest_sites} sites' shares has all of it"
        if settings.shares_noise else "local",
        "noise_multiplier": cost.noise_multiplier,
        "clipping_norm": _norm(run),
        "sample_rate": cost.sample_rate,
        "steps": cost.steps,
        "masks": settings.encryption.collusion_resistant,
        "votes": f"{settings.rounds}, of ε {settings.vote.epsilon:g} each, charged to the records held out"
        if settings.vote else "none",
        "delta": balance.limit.delta,
        "epsilon_of_the_whole_run": whole["epsilon"],
        "epsilon_of_the_whole_run_replace_one": whole["epsilon_replace_one"],
        "epsilon_charged_here": here["epsilon"],
        "epsilon_charged_here_replace_one": here["epsilon_replace_one"],
    }  # fmt: skip


def against_ledger(charges: Sequence[Entry], disclosed: Sequence[str]) -> list[dict[str, Any]]:
    """State who sees what of all runs together, and at which ε."""
    beyond, shared = "at most the ε above", _SHARED in _kinds(charges, None)
    if shared:
        beyond += ", and more from runs with shared noise: state such a run for its table"
    return [
        _server(disclosed, beyond),
        {"who": "the other sites, and anyone with the model", "sees": "sums over all sites", "epsilon": "the ε above"},
        {"who": "the server together with other sites, or everyone with all keys",
         "sees": "what they have together; at most this site's own updates", "epsilon": beyond},
    ]  # fmt: skip


def against_run(run: StatedRun, balance: Balance, disclosed: Sequence[str]) -> list[dict[str, Any]]:
    """State who sees what of a run, and the whole run's ε against each, for rounds with the minimum cohort."""
    settings = run.manifest.settings
    last = settings.cohort.minimum - 1
    apart = "the sums, less their own parts"
    if not settings.encryption.collusion_resistant:
        apart += "; with the server, this site's updates"
    server = _server(disclosed, "at most that of the last row, even with all keys")
    rows = [server | {"noise_multiplier": None, "charged": False}]
    for observer in observers(run.manifest, balance.limit.delta, balance.ledger.records_per_person):
        others = observer.colluding_sites
        who = f"{others} other sites together" if others > 1 else "one other site" if others else "anyone with the sums"
        rows.append({
            "who": "all other sites together" if others == last else who,
            "sees": "this site's updates" if others == last else apart if others else "sums over all sites",
            "epsilon": observer.epsilon,
            "noise_multiplier": observer.noise_multiplier,
            "charged": observer.declared,
        })  # fmt: skip
    return rows


def _server(disclosed: Sequence[str], beyond: str) -> dict[str, Any]:
    clear = ", ".join("the ε spent" if name == "epsilon" else name for name in disclosed)
    shared = f"; in the clear, {clear}" if disclosed else ""
    return {"who": "the server; the network", "sees": f"ciphertexts, sizes and times{shared}",
            "epsilon": f"none from updates while the encryption holds; {beyond}"}  # fmt: skip


def _kinds(charges: Sequence[Entry], run: StatedRun | None) -> list[str]:
    """Return the kinds of noise in a statement; local if there is none."""
    discrete = {charge.mechanism.discrete for charge in charges if not charge.mechanism.pure}
    if run:
        discrete.add(run.manifest.settings.shares_noise)
    return [name for name, kind in ((_LOCAL, False), (_SHARED, True)) if kind in (discrete or {False})]


def _norm(run: StatedRun) -> float | str:
    return run.manifest.settings.privacy.max_grad_norm or "1, for a record's vector in a sum"
