"""`cloister bench algorithms`: compare the federated algorithms on heterogeneous sites.

Handwritten digits are divided among eight sites by Dirichlet(0.1): most sites have two or three digits. Each row
averages runs over the same seeds, without noise or at ε = 8 with local noise. A seed fixes the partition and each
site's held-out fifth; the accuracy is the last model's, on all held-out records. Every round runs the code of sites
except encryption, which changes no bit of a sum (`simulations.engine.keyless_rounds`).

Without noise, a site takes many steps per round, so that it drifts; with noise, few, because each step adds noise. In
FedNova, two of the sites take a quarter of the steps, or half. Learning rates and parameters were chosen on other
splits of the same records, seeds 100 and 101; no ε covers that choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from client.data.site_records import pooled
from cloister.benchmarks.pipelines import charge_for_nobody
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from server.settings import read_consortium, read_run
from simulations.engine.baselines import accuracy, studies_of
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.keyless_rounds import PackedMeans, Sites
from simulations.engine.keyless_rounds import rounds as rounds_of
from simulations.tasks.digits import digits, write_digits
from simulations.tasks.partition import dirichlet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from client.work.training import Study
    from privacy.codec.update import Model
    from privacy.ledger.ledger import Charge
    from privacy.run.strategy import Parameter

ALPHA, SITES, HELD_OUT, DELTA = 0.1, 8, 0.2, 1e-4
TARGETS: dict[float | None, float] = {None: 0.93, 8.0: 0.85}
"""The target accuracy for `rounds_to_target`, without noise and at an ε."""

_ROUNDS: dict[float | None, tuple[int, int]] = {None: (8, 20), 8.0: (15, 2)}  # rounds, and a site's steps in each


@dataclass(frozen=True)
class Way:
    """An algorithm's settings: the sites' learning rate, and its own parameters."""

    learning_rate: float
    parameters: Mapping[str, Parameter]


def ways(epsilon: float | None) -> dict[str, Way]:
    """Return each algorithm's settings, without noise (None) or with."""
    return {
        name: Way(rate, parameters) for name, (rate, parameters) in (_PLAIN if epsilon is None else _PRIVATE).items()
    }


_PLAIN: dict[str, tuple[float, dict[str, Parameter]]] = {
    "fedavg": (4.0, {}),
    "fedprox": (4.0, {"mu": 0.002}),
    "fedavgm": (2.0, {"momentum": 0.5}),
    "fedadagrad": (2.0, {"server_learning_rate": 0.8, "tau": 0.1}),
    "fedadam": (2.0, {"server_learning_rate": 0.5, "tau": 0.1}),
    "fedyogi": (2.0, {"server_learning_rate": 0.5, "tau": 0.1}),
    "scaffold": (4.0, {}),
    "feddyn": (4.0, {"alpha": 0.005}),
    "fednova": (4.0, {"steps": {"site-1": 5, "site-2": 5}}),
}
_PRIVATE: dict[str, tuple[float, dict[str, Parameter]]] = {
    "fedavg": (30.0, {}),
    "fedprox": (30.0, {"mu": 0.002}),
    "fedavgm": (20.0, {"momentum": 0.5}),
    "fedadagrad": (30.0, {"server_learning_rate": 0.5, "tau": 0.3}),
    "fedadam": (15.0, {"server_learning_rate": 0.5, "tau": 0.02}),
    "fedyogi": (15.0, {"server_learning_rate": 0.5, "tau": 0.02}),
    "scaffold": (30.0, {}),
    "feddyn": (30.0, {"alpha": 0.002}),
    "fednova": (30.0, {"steps": {"site-1": 1, "site-2": 1}}),
}


def settings_of(name: str, way: Way, epsilon: float | None, sizes: Mapping[str, int]) -> RunSettings:
    """Return an algorithm's run over sites of these sizes."""
    norm = 1e6 if epsilon is None else 0.3
    rounds, steps = _ROUNDS[epsilon]
    return RunSettings(
        name=f"digits-{name}",
        task="simulations.tasks.digits:Digits",
        rounds=rounds,
        training=Training(steps_per_round=steps, sample_rate=1.0, learning_rate=way.learning_rate),
        privacy=Privacy(
            max_grad_norm=norm, delta=DELTA, epsilon=epsilon, noise_multiplier=0.0 if epsilon is None else None
        ),
        encryption=Encryption(update_bound=8.0, profile="precise", collusion_resistant=False),
        cohort=Cohort(sizes=dict(sizes), minimum=len(sizes)),
        strategy={"name": name, **way.parameters},
    )


def measure(seeds: int, first_seed: int = 0) -> dict[str, Any]:
    """Train with every algorithm and seed; show progress on standard error."""
    curves: dict[tuple[str, float | None], list[list[float]]] = {
        (name, epsilon): [] for epsilon in TARGETS for name in ways(epsilon)
    }
    charge, console = charge_for_nobody(), Console(stderr=True)
    jobs = [(seed, *case) for seed in range(first_seed, first_seed + seeds) for case in curves]
    with TemporaryDirectory(prefix="cloister-bench-") as folder:
        dealt: tuple[int, Federation] | None = None
        for seed, name, epsilon in track(
            jobs, "training", console=console, transient=True, disable=not console.is_terminal
        ):
            if dealt is None or dealt[0] != seed:
                dealt = seed, deal(seed, Path(folder, str(seed)))
            way = ways(epsilon)[name]
            curves[name, epsilon].append(learn(dealt[1], name, way, epsilon, seed, charge))
    rows = []
    for (name, epsilon), runs in curves.items():
        reached = [next((number for number, result in enumerate(curve, 1) if result >= TARGETS[epsilon]), None)
                   for curve in runs]  # fmt: skip
        numbers = [number for number in reached if number is not None]
        rows.append({
            "algorithm": name,
            "data": "digits",
            "sites": SITES,
            "alpha": ALPHA,
            "rounds": _ROUNDS[epsilon][0],
            "steps": _ROUNDS[epsilon][1],
            "epsilon": epsilon,
            "accuracy_mean": fmean(curve[-1] for curve in runs),
            "accuracy_std": pstdev(curve[-1] for curve in runs),
            "seeds": seeds,
            "target": TARGETS[epsilon],
            "rounds_to_target": fmean(numbers) if len(numbers) == len(reached) else None,
        })  # fmt: skip
    return {"rows": rows, "first_seed": first_seed}


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = []
    for epsilon, target in TARGETS.items():
        rounds, steps = _ROUNDS[epsilon]
        heading = "no noise" if epsilon is None else f"ε = {epsilon:g}"
        heading += f", {rounds} rounds of {steps} steps"
        lines.append(f"{heading:<30}{'test accuracy, %':>18}{f'rounds to {100 * target:g} %':>18}")
        for row in report["rows"]:
            if row["epsilon"] == epsilon:
                reached = "–" if row["rounds_to_target"] is None else f"{row['rounds_to_target']:.1f}"
                right = f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
                lines.append(f"  {row['algorithm']:<28}{right:>18}{reached:>18}")
        lines.append("")
    of = f"digits, {SITES} sites, Dirichlet({ALPHA:g}), {report['rows'][0]['seeds']} seeds"
    return "\n".join([*lines, f"{of}; ± is their standard deviation; –: not with every seed"])


def deal(seed: int, folder: Path) -> Federation:
    """Make a federation whose sites share the digits."""
    federation = Federation.create(folder, [f"site-{number}" for number in range(1, SITES + 1)])
    terms = SiteTerms(
        tasks=("simulations.tasks.digits:Digits",), held_out=HELD_OUT, file="records.csv", collusion_resistant=False
    )
    parts = dirichlet(digits()[1], SITES, ALPHA, seed)
    for (site, path), part in zip(federation.paths.items(), parts, strict=True):
        write_digits(path / terms.file, part)
        federation.write_settings(site, "localhost:1", terms)
    return federation


def learn(federation: Federation, name: str, way: Way, epsilon: float | None, seed: int, charge: Charge) -> list[float]:
    """Return the accuracy after each round of a run."""
    studies, models = models_of(federation, settings_of(name, way, epsilon, sizes_of(federation)), seed, charge)
    held_out, first = pooled([study.held_out for study in studies.values()]), next(iter(studies.values()))
    return [accuracy(first, model, held_out) for model in models]


def sizes_of(federation: Federation) -> dict[str, int]:
    """Return the number of records that each site trains on."""
    sizes = {site: len((path / "records.csv").read_text().splitlines()) - 1 for site, path in federation.paths.items()}
    return {site: count - round(count * HELD_OUT) for site, count in sizes.items()}


def models_of(
    federation: Federation, settings: RunSettings, seed: int, charge: Charge
) -> tuple[dict[str, Study], Iterator[Model]]:
    """Return every site's study, and the shared model after each round of a run."""
    federation.sign(settings)
    manifest = read_run(federation.manifest, read_consortium(federation.server).roster()).manifest
    studies = studies_of(federation, manifest)
    weights = {site: manifest.weight(site) for site in studies}
    means = PackedMeans(Sites.seeded(studies, weights, manifest, seed), manifest.packing, charge)
    start = next(iter(studies.values())).start(manifest.settings)
    return studies, islice(rounds_of(start, manifest.settings.rounds, means, means.apply), 1, None)
