"""`cloister bench personal`: compare the shared model with those that each site trains for itself, on its own records.

The sites and the shared model are those of `cloister bench algorithms` with FedAvg: digits divided among eight sites by
Dirichlet(0.1), without noise or at ε = 8. Each held-out record is classified by its own site's model:

    alone         trained at the site without noise, and without the others
    shared        the run's last model
    fine-tuning   the shared model, trained further at the site, once
    ditto         trained after every round, pulled to the shared model

Those that stay at the site are trained without noise. Learning rates, epochs and λ were chosen on other splits of the
same records, seeds 100 and 101; no ε covers that choice.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from client.settings import Personal
from client.work.personal_training import steps_of, train_on
from cloister.benchmarks.algorithms import ALPHA, SITES, TARGETS, deal, models_of, settings_of, sizes_of, ways
from cloister.benchmarks.pipelines import charge_for_nobody
from privacy.noise.randomness import Randomness
from simulations.engine.baselines import accuracy

if TYPE_CHECKING:
    from client.state.personal_models import Values
    from client.work.training import Study
    from privacy.codec.update import Model
    from privacy.ledger.ledger import Charge
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation

ALONE = Personal("fine-tuning", learning_rate=0.5, epochs=20.0)
TUNED = Personal("fine-tuning", learning_rate=0.1, epochs=5.0)
DITTO = Personal("ditto", learning_rate=0.5, epochs=2.0, proximal=0.1)
KINDS = ("alone", "shared", "fine-tuning", "ditto")


def measure(seeds: int, first_seed: int = 0) -> dict[str, Any]:
    """Train with every seed, without noise and with; show progress on standard error."""
    accuracies: dict[tuple[str, float | None], list[float]] = {
        (kind, epsilon): [] for epsilon in TARGETS for kind in KINDS
    }
    charge, console = charge_for_nobody(), Console(stderr=True)
    with TemporaryDirectory(prefix="cloister-bench-") as folder:
        for seed in track(range(first_seed, first_seed + seeds), "training", console=console, transient=True,
                          disable=not console.is_terminal):  # fmt: skip
            federation = deal(seed, Path(folder, str(seed)))
            for epsilon in TARGETS:
                for kind, right in compare(federation, epsilon, seed, charge).items():
                    accuracies[kind, epsilon].append(right)
    rows = [
        {
            "model": kind, "data": "digits", "sites": SITES, "alpha": ALPHA, "epsilon": epsilon, "seeds": seeds,
            "accuracy_mean": fmean(values), "accuracy_std": pstdev(values),
        }
        for (kind, epsilon), values in accuracies.items()
    ]  # fmt: skip
    return {"rows": rows, "first_seed": first_seed}


def compare(federation: Federation, epsilon: float | None, seed: int, charge: Charge) -> dict[str, float]:
    """Return the share of all held-out records that their own sites' models classify correctly."""
    settings = settings_of("fedavg", ways(epsilon)["fedavg"], epsilon, sizes_of(federation))
    studies, models = models_of(federation, settings, seed, charge)
    ditto: dict[str, Values] = {site: {} for site in studies}
    last: Model | None = None
    for number, shared in enumerate(models, 1):
        last = shared
        for site, study in studies.items():
            ditto[site] = _trained(study, settings, shared, DITTO, (seed, site, number), ditto[site])
    if last is None:
        return {}
    of: dict[str, dict[str, Model]] = {kind: {} for kind in KINDS}
    for site, study in studies.items():
        of["shared"][site], of["ditto"][site] = last, _with(last, ditto[site])
        for kind, start, options in (("alone", study.start(settings), ALONE), ("fine-tuning", last, TUNED)):
            of[kind][site] = _with(last, _trained(study, settings, start, options, (seed, site, 0)))
    counts = [len(study.held_out) for study in studies.values()]
    return {
        kind: float(np.average([accuracy(studies[site], model, studies[site].held_out)
                                for site, model in own_models.items()], weights=counts))
        for kind, own_models in of.items()
    }  # fmt: skip


def _trained(
    study: Study, settings: RunSettings, shared: Model, options: Personal, stream: tuple[int, str, int],
    start: Values | None = None,
) -> Values:  # fmt: skip
    seed, site, number = stream
    randomness = Randomness.seeded(seed, site, number, "personal")
    return train_on(study, settings, shared, options, steps_of(options, settings, site), randomness, start=start or {})


def _with(model: Model, values: Values) -> Model:
    return type(model)(model.layout.flatten(values), model.layout)


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = []
    for epsilon in TARGETS:
        lines.append(f"{'no noise' if epsilon is None else f'ε = {epsilon:g}':<30}{'accuracy at own site, %':>26}")
        for row in report["rows"]:
            if row["epsilon"] == epsilon:
                right = f"{100 * row['accuracy_mean']:.1f} ± {100 * row['accuracy_std']:.1f}"
                lines.append(f"  {row['model']:<28}{right:>26}")
        lines.append("")
    of = f"digits, {SITES} sites, Dirichlet({ALPHA:g}), {report['rows'][0]['seeds']} seeds"
    return "\n".join([*lines, f"{of}; ± is their standard deviation; all but shared stay at the site"])
