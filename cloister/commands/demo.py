"""`cloister demo`: a real federation on this machine, run with the same commands that hospitals would use.

1. Make a consortium in a folder: keys, certificates, roster, three hospitals with their own records.
2. Start one `cloister server` and three `cloister agent` processes.
3. Follow the server's event log until the run is over; stop everything, however it ends. The log has no loss or
   accuracy: the demo reads these in the hospitals' own folders, which only a demo can do.
4. Compare the shared model, each hospital alone, and all records pooled without privacy.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from cloister.local import follow, start_agents, start_server
from cloister.processes import Processes
from cloister.views.run import RoundTable, size
from privacy.errors import RunError
from simulations.engine.inspection import find_secrets, site_secrets
from simulations.engine.results import Results, read_own_metrics, read_results
from simulations.tasks.reference_study import prepare_study

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation, SiteTerms


def run_demo(folder: Path, console: Console) -> dict[str, Any]:
    """Run the demo in `folder` and return its summary.

    Raises:
        ConfigError: if the folder holds other files.
        RunError: if the run failed.
    """
    started = time.monotonic()
    study = prepare_study(folder)
    federation, settings, terms = study.federation, study.settings, study.terms
    console.print(
        f"{len(federation.sites)} hospitals · {study.patients} patients · TLS, encryption and privacy on · "
        "this machine only"
    )
    own = partial(read_own_metrics, federation)
    with Processes() as processes, RoundTable(console, terms.epsilon, own) as table:
        table.status("starting the server")
        address = start_server(processes, federation)
        table.status("starting the hospitals' agents")
        start_agents(processes, federation, address, terms)
        follow(processes, federation, table.show)
    results = read_results(federation)
    summary = _summarise(federation, settings, terms, results, started)
    _print(console, summary, federation)
    return summary


def _summarise(federation: Federation, settings: RunSettings, terms: SiteTerms, results: Results,
               started: float) -> dict[str, Any]:  # fmt: skip
    from client.flower import open_site  # noqa: PLC0415 - loads torch; let the agents do so first
    from privacy.run.manifest import open_run  # noqa: PLC0415
    from simulations.engine.baselines import accuracy_alone, accuracy_pooled, accuracy_together  # noqa: PLC0415

    if set(results.digests) != set(federation.sites) or len(set(results.digests.values())) != 1:
        msg = f"the hospitals do not all have the same model: {results.digests}; the logs are in {federation.folder}"
        raise RunError(msg)
    if leaked := find_secrets(federation.server, site_secrets(federation)):
        msg = f"the server's folder contains data that only sites may have: {leaked}; please report this"
        raise RunError(msg)
    sites = {site: open_site(path) for site, path in federation.paths.items()}
    roster = next(iter(sites.values())).roster
    manifest = open_run(federation.manifest.read_bytes(), roster).manifest
    released = [event for event in results.events if event["event"] == "round" and event["released"]]
    model = next(iter(sites.values())).checkpoint(manifest, results.run).model
    parameters = model.vector.size
    updates = sum(len(event["sites"]) for event in released)
    bytes_up = sum(event["bytes_up"] for event in released)
    return {
        "rounds": results.rounds,
        "accuracy": accuracy_together(federation, manifest, model),
        "accuracy_alone": accuracy_alone(federation, manifest),
        "accuracy_pooled": accuracy_pooled(federation, manifest),
        "epsilon": {site: opened.ledger.spent(terms.delta) for site, opened in sites.items()},
        "delta": dict.fromkeys(federation.sites, terms.delta),
        "epsilon_budget": dict.fromkeys(federation.sites, terms.epsilon),
        "parameters": parameters,
        "ciphertexts": updates * manifest.packing.ciphertexts(parameters),
        "upload_bytes_per_parameter": bytes_up / updates / parameters,
        "model": {site: str(path) for site, path in results.paths.items()},
        "model_digest": results.digests,
        "task": settings.task,
        "seconds": round(time.monotonic() - started, 1),
    }


def _print(console: Console, summary: dict[str, Any], federation: Federation) -> None:
    """Print the summary as text."""
    alone = " · ".join(f"{value:.2f}" for value in summary["accuracy_alone"].values())
    digest = next(iter(summary["model_digest"].values()))
    epsilon = max(summary["epsilon"].values())
    pooled = summary["accuracy_pooled"]
    site, path = next(iter(summary["model"].items()))
    budget, delta = max(summary["epsilon_budget"].values()), max(summary["delta"].values())
    plain = size(4 * summary["parameters"])
    sent = size(summary["upload_bytes_per_parameter"] * summary["parameters"])
    parts = {
        "accuracy": f"together {summary['accuracy']:.2f}   alone {alone}   pooled, no privacy {pooled:.2f}",
        "privacy": f"ε {epsilon:.2f} of {budget:g}, δ {delta:g}, per patient, at each hospital",
        "server": f"saw {summary['ciphertexts']} ciphertexts; its disk was searched: no key, no weight",
        "sent": f"{sent} an update, plain float32 {plain}; a ciphertext fits 12,285",
        "model": str(path),
        "next": f"less {federation.paths[site] / 'site.toml'}",
    }
    lines = [
        f"✓ {summary['seconds']:.0f} s. The same model at all {len(federation.sites)} hospitals: sha256 {digest[:16]}…",
        *(f"  {name:<9} {text}" for name, text in parts.items()),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
