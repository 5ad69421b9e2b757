"""Say in plain words what a run would do at a site, and what the site decided about its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloister.views.observers import table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_DOES = {
    "training": "trains a model on this site's training records",
    "statistics": "adds up figures over this site's training records",
    "evaluation": "evaluates a model on this site's held-out records",
}
_SENDS = {
    "training": "after each round, the change of the model",
    "statistics": "once, the sums",
    "evaluation": "once, the sums of the model's metrics",
}
_RESULTS = {"training": "the model after each round", "statistics": "the figures", "evaluation": "the metrics"}


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines about one run."""
    signed, task, purpose, sites = report["signed_by"], report["task"], report["purpose"], report["sites"]
    yield f"run {report['name']} ({report['run'][:8]}), as it would be at {report['site']}"
    yield f"  signed by   {signed['name']}, {signed['role']} of {signed['consortium']}, on {signed['created'][:16]}"
    yield f"              with the key {signed['key']}"
    yield f"              this site joins runs of {_signers(signed['signers'])}"
    yield f"  task        {task['name']}, {'listed' if task['listed'] else 'NOT LISTED'} in this site's policy"
    yield f"              {_installed(task)}"
    yield f"  does        {_DOES[purpose]}; {_times(report)}, until {signed['expires'][:16]} at the latest"
    noise = f"with noise (σ {report['cost']['noise_multiplier']:g})"
    yield f"  sends       {_SENDS[purpose]}, {noise}, encrypted with keys of the sites"
    yield f"              {_opened(report)}"
    yield f"  sends also  {_disclosed(report['disclosed'])}"
    yield f"  result      {_RESULTS[purpose]} goes to {', '.join(sites)}; the server cannot decrypt it"
    yield f"  model       {_recipients(report['recipients'])}"
    yield from (f"  {line}" for line in _cost(report))
    if report["hours"]["refusal"]:
        yield f"! {report['hours']['refusal']}"
    yield from (f"✗ {refusal}" for refusal in report["refusals"])
    if report["allowed"]:
        yield f"✓ this site's policy and budget allow it{_approval(report)}"


def listed(runs: Sequence[Mapping[str, Any]], site: str) -> Iterator[str]:
    """Yield a line about each run that a site keeps."""
    if not runs:
        yield "no run waits for approval"
    for run in runs:
        if run["run"] is None:
            yield f"! {run['problem']}"
            continue
        decided = f"{run['decision']} {run['time'][:16]}" if run["decision"] else "waits"
        yield f"{run['run'][:8]}  {run['name']:<40}  {'expired' if run['expired'] else decided}"
    if any(run["run"] and not run["decision"] and not run["expired"] for run in runs):
        yield f"next: cloister approve RUN {site}"


def _installed(task: Mapping[str, Any]) -> str:
    if task["digest"] is None:
        return "not installed here"
    listed_digest = task["digest_in_policy"]
    same = "" if listed_digest is None else ", as" if listed_digest == task["digest"] else ", NOT as"
    return f"installed, digest {task['digest']}" + (f"{same} in the policy" if same else "")


def _times(report: Mapping[str, Any]) -> str:
    seconds, rounds = report["round_deadline_seconds"], report["rounds"]
    return f"{rounds} {'round' if rounds == 1 else 'rounds'} of at most {seconds:g} s"


def _opened(report: Mapping[str, Any]) -> str:
    least = report["minimum_cohort"]
    if report["masks"]:
        return f"and masked: only the sum of at least {least} sites can be opened"
    return f"without masks: a site that colludes with the server can open it; summed over at least {least} sites"


def _disclosed(names: Sequence[str]) -> str:
    metrics = [name for name in names if name != "epsilon"]
    parts = ["the ε spent"] if "epsilon" in names else []
    if metrics:
        parts.append(f"{', '.join(metrics)}, WITHOUT NOISE")
    return " and ".join(parts) or "nothing"


def _signers(names: Sequence[str] | None) -> str:
    if names is None:
        return "everybody whom the roster allows to sign"
    return f"{', '.join(names) or 'nobody'} only (signers in [policy])"


def _recipients(names: Mapping[str, Sequence[str]]) -> str:
    asked, allowed = (", ".join(names[each]) for each in ("run", "policy"))
    beside = f"the run gives it also to {asked}" if asked else "only these sites may have it"
    return f"{beside}; this site allows {allowed or 'nobody else'} (recipients in [policy])"


def _cost(report: Mapping[str, Any]) -> Iterator[str]:
    cost = report["cost"]
    spent, after, own = (_number(cost[name]) for name in ("spent", "spent_after", "cost"))
    yield f"costs       ε {own} at δ {cost['delta']:g}, against everybody who sees what is sent or the result"
    yield f"            this site's ledger: ε {spent} now, {after} after it, of {cost['budget']:g}"
    if cost["rounds_charged"]:
        yield f"            {cost['rounds_charged']} of its {report['rounds']} rounds are charged already"
    yield from (f"            {line}" for line in table(report))


def _number(epsilon: float | None) -> str:
    return "∞" if epsilon is None else f"{epsilon:.2f}"


def _approval(report: Mapping[str, Any]) -> str:
    approval = report["approval"]
    if approval["decision"]:
        return f"; {approval['decision']} {approval['time'][:16]}"
    if approval["needed"]:
        return f"; it waits for: cloister approve {report['run'][:8]} {report['site']}"
    return ""
