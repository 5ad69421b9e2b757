"""`cloister bench accuracy`: the accuracy cost of packing into few bits, compared with float32 averaging.

Runs the reference study with the same seeds for every codec: the same batches, the same noise. Every update is packed,
encrypted, added and decrypted by the functions that sites and server run; only signatures and the network are left out.
The residual of packing is added to the next update, as at a site; the row `dense, nothing carried` shows the effect of
leaving that out. With every codec, the range follows the last sum.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from client.data.site_records import pooled
from cloister.benchmarks.pipelines import Cloister, charge_for_nobody
from privacy.codec.packing import Packing, Profile
from privacy.noise.randomness import Randomness
from server.settings import read_consortium, read_run
from simulations.engine.baselines import accuracy, studies_of
from simulations.engine.keyless_rounds import PackedMeans, Sites, rounds
from simulations.tasks.reference_study import prepare_study

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from client.work.training import Study
    from privacy.codec.update import Model, Update
    from privacy.run.manifest import Manifest

_CODECS: dict[str, tuple[Profile, bool] | None] = {
    "float32": None,
    "precise": ("precise", True),
    "compact": ("compact", True),
    "dense": ("dense", True),
    "dense, no error feedback": ("dense", False),
}


def measure(seeds: int) -> dict[str, Any]:
    """Train the reference study with every codec and seed; show progress on standard error."""
    runs: dict[str, list[tuple[float, NDArray[np.float32]]]] = {name: [] for name in _CODECS}
    with TemporaryDirectory(prefix="cloister-bench-") as folder:
        study = prepare_study(Path(folder, "study"))
        federation = study.federation
        for site in federation.sites:
            federation.write_settings(site, "localhost:1", study.terms)
        manifest = read_run(federation.manifest, read_consortium(federation.server).roster()).manifest
        studies = studies_of(federation, manifest)
        console = Console(stderr=True)
        jobs = [(name, seed) for seed in range(seeds) for name in _CODECS]
        for name, seed in track(jobs, "training", console=console, transient=True, disable=not console.is_terminal):
            runs[name].append(_train(studies, manifest, _CODECS[name], seed))
    plain = runs["float32"]
    rows = []
    for name, results in runs.items():
        right = [score for score, _ in results]
        apart = [float(np.abs(model - exact).max()) for (_, model), (_, exact) in zip(results, plain, strict=True)]
        rows.append(
            {
                "codec": name,
                "accuracy_mean": fmean(right),
                "accuracy_std": pstdev(right),
                "points_lost": 100 * (fmean(score for score, _ in plain) - fmean(right)),
                "model_error": fmean(apart),  # the largest difference of a parameter, on average over seeds
                "seeds": seeds,
            }
        )
    return {"rows": rows}


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    lines = [f"{'':<24}{'accuracy, %':>16}{'points lost':>13}{'largest error of model':>25}"]
    for row in report["rows"]:
        mean, spread = (f"{100 * row[name]:.2f}" for name in ("accuracy_mean", "accuracy_std"))
        lines.append(
            f"{row['codec']:<24}{mean + ' ± ' + spread:>16}{row['points_lost']:>13.2f}{row['model_error']:>25.1e}"
        )
    seeds = report["rows"][0]["seeds"]
    return "\n".join([*lines, "", f"the reference study, {seeds} seeds; ± is their standard deviation"])


def _train(
    studies: dict[str, Study], manifest: Manifest, codec: tuple[Profile, bool] | None, seed: int
) -> tuple[float, NDArray[np.float32]]:
    """Train for all rounds; return the accuracy on all held-out records, and the parameters `(n,)`."""
    weights = {site: manifest.weight(site) for site in studies}
    sites = Sites(studies, weights, manifest, partial(_randomness, seed))
    model = next(iter(studies.values())).start(manifest.settings)
    mean: Callable[[int, Model], Update] = sites.exact_mean
    if codec:
        profile, carries = codec
        charge, bound = charge_for_nobody(), manifest.packing.update_bound
        packing = Packing.of(profile, cohort=len(studies), update_bound=bound, max_weight=1.0)
        pipeline = Cloister(profile, model.layout.size, list(weights.values()), charge)
        mean = PackedMeans(sites, packing, charge, carries=carries, total=pipeline.total)
    *_, model = rounds(model, manifest.settings.rounds, mean)
    held_out = pooled([study.held_out for study in studies.values()])
    return accuracy(next(iter(studies.values())), model, held_out), model.vector


def _randomness(seed: int, site: str, number: int, purpose: str) -> Randomness:
    """Return randomness that gives every codec the same batches and noise."""
    return Randomness.seeded(seed, site, number - 1) if purpose == "training" else Randomness.fresh()
