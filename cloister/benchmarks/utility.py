"""`cloister bench utility`: a model's accuracy for an ε, on real records at heterogeneous sites.

Each row averages runs over the same seeds, with local noise, shared noise or none. A seed fixes the partition, by
Dirichlet(0.5), and the held-out fifth of each site. Every round runs the code of sites: `Study.release` (sampling,
clipping, noise), packing with carried residuals or the site's share of the noise, unpacking, and the mean of the last
rounds' models. Encryption, which changes no bit of a sum, is left out.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from client.data.site_records import pooled
from cloister.benchmarks.pipelines import charge_for_nobody
from cloister.benchmarks.trials import DATA, EPSILONS, Data, Trial
from privacy.accounting.accounting import epsilon
from privacy.codec.update import Model
from server.settings import read_consortium, read_run
from simulations.engine.baselines import accuracy, studies_of
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.keyless_rounds import PackedMeans, Sites, result, rounds
from simulations.tasks.partition import dirichlet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from client.work.training import Study
    from privacy.ledger.ledger import Charge
    from privacy.run.manifest import Manifest

_CONCENTRATION = 0.5
_HELD_OUT = 0.2


def measure(seeds: int, planned: Sequence[Trial], first_seed: int = 0) -> dict[str, Any]:
    """Train every trial with every seed; show progress on standard error."""
    accuracies: dict[Trial, list[float]] = {trial: [] for trial in planned}
    spent: dict[Trial, float] = {}
    charge, console = charge_for_nobody(), Console(stderr=True)
    jobs = [(data, seed, trial)
            for data in DATA for seed in range(first_seed, first_seed + seeds)
            for trial in planned if trial.data == data.name]  # fmt: skip
    with TemporaryDirectory(prefix="cloister-bench-") as folder:
        dealt: tuple[tuple[str, int], Federation] | None = None
        for data, seed, trial in track(
            jobs, "training", console=console, transient=True, disable=not console.is_terminal
        ):
            if dealt is None or dealt[0] != (data.name, seed):
                dealt = (data.name, seed), deal(data, seed, Path(folder, f"{data.name}-{seed}"))
            studies, model, manifest = train(dealt[1], data, trial, seed, charge)
            accuracies[trial].append(accuracy(studies[0], model, pooled([study.held_out for study in studies])))
            spent[trial] = epsilon([manifest.round_cost] * manifest.settings.rounds, data.delta)
    rows = [
        {
            **asdict(trial),
            "sites": data.sites,
            "delta": data.delta if trial.epsilon else None,
            "epsilon_spent": spent[trial] if trial.epsilon else None,
            "accuracy_mean": fmean(accuracies[trial]),
            "accuracy_std": pstdev(accuracies[trial]),
            "seeds": seeds,
        }
        for data in DATA
        for trial in planned
        if trial.data == data.name
    ]
    return {"rows": rows, "first_seed": first_seed}


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [f"{'test accuracy, %':<42}" + "".join(f"{f'ε = {target:g}':>12}" for target in EPSILONS)]
    for data in DATA:
        rows = [row for row in report["rows"] if row["data"] == data.name]
        for noise, variant in dict.fromkeys((row["noise"], row["variant"]) for row in rows):
            cells = {
                row["epsilon"]: f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
                for row in rows
                if (row["noise"], row["variant"]) == (noise, variant)
            }
            title = f"{data.name}, {data.sites} sites, {noise} noise" if noise != "none" else f"{data.name}, no privacy"
            name = f"  {variant}" if variant else title
            lines.append(
                f"{name:<42}" + "".join(f"{cells.get(target, cells.get(None, '')):>12}" for target in EPSILONS)
            )
    seeds, first = report["rows"][0]["seeds"], report["first_seed"]
    deltas = ", ".join(f"{data.delta:.1e} ({data.name})" for data in DATA)
    return "\n".join([
        *lines, "", f"seeds {first} to {first + seeds - 1}; ± is their standard deviation; δ is {deltas}, 1/n^1.1",
        "Local noise: ε holds against everyone. Shared noise: against anyone who sees only the sums.",
        "The settings were chosen on other splits of the same records, seeds 100 to 239; ε does not cover that choice.",
    ])  # fmt: skip


def deal(data: Data, seed: int, folder: Path) -> Federation:
    """Make a federation whose sites share the records."""
    federation = Federation.create(folder, [f"site-{number}" for number in range(1, data.sites + 1)])
    parts = dirichlet(data.labels(), data.sites, _CONCENTRATION, seed)
    terms = SiteTerms(tasks=(data.task,), held_out=_HELD_OUT, file="records.csv", collusion_resistant=False)
    for (site, path), part in zip(federation.paths.items(), parts, strict=True):
        data.write(path / terms.file, part)
        federation.write_settings(site, "localhost:1", terms)
    return federation


def train(
    federation: Federation, data: Data, trial: Trial, seed: int, charge: Charge
) -> tuple[list[Study], Model, Manifest]:
    """Sign a trial's run and train it; return all sites' studies, the resulting model, and the manifest."""
    sizes = {site: len((path / "records.csv").read_text().splitlines()) - 1 for site, path in federation.paths.items()}
    sizes = {site: count - round(count * _HELD_OUT) for site, count in sizes.items()}
    federation.sign(trial.settings(data, sizes))
    manifest = read_run(federation.manifest, read_consortium(federation.server).roster()).manifest
    studies = studies_of(federation, manifest)
    weights = {site: manifest.weight(site) if trial.weighted else 1.0 for site in studies}
    return list(studies.values()), _train(studies, manifest, weights, seed, charge), manifest


def _train(
    studies: dict[str, Study], manifest: Manifest, weights: dict[str, float], seed: int, charge: Charge
) -> Model:
    """Train for all rounds; return the resulting model."""
    settings = manifest.settings
    start = next(iter(studies.values())).start(settings)
    means = PackedMeans(Sites.seeded(studies, weights, manifest, seed), manifest.packing, charge)
    return result(rounds(start, settings.rounds, means, means.apply), settings)
