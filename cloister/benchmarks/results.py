"""`cloister bench results`: what every reference task reaches alone, pooled, federated, and federated at an ε.

A seed fixes the test set, a fifth of all records, and the partition of the rest by Dirichlet(0.5). `alone` is the mean
over sites that train on their own records only; `pooled` trains on all of them in one place. Neither has noise. What is
federated runs the code of sites except encryption, which changes no bit of a sum: sampling, clipping, noise at each
site, packing with carried residuals, the mean. All are scored on the same test set.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from typing_extensions import override

from client.data.site_records import InMemory, pooled, predictions
from client.flower import open_site
from client.work.training import Study
from cloister.benchmarks.pipelines import charge_for_nobody
from cloister.benchmarks.training_times import on_one_thread
from privacy.accounting.accounting import epsilon as spent
from privacy.errors import ConfigError
from server.settings import read_consortium, read_run
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.keyless_rounds import PackedMeans, Sites, result, rounds
from simulations.tasks.partition import dirichlet
from simulations.tasks.references import EPSILONS, REFERENCES, Reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.codec.update import Model
    from privacy.run.manifest import Manifest

WAYS = ("alone", "pooled", "federated", *(f"ε = {epsilon:g}" for epsilon in EPSILONS))
_CONCENTRATION, _TESTED = 0.5, 0.2
_POOL, _TEST = "pool", "test"
_BATCH = 256  # records scored at once
_BITS = 24  # of a parameter in the precise profile


class _Kept(Study):
    """A study whose records stay in memory, since every way trains on them; the task was tried on others in tests."""

    def keep(self, records: InMemory) -> None:
        """Train on these records instead of the site's."""
        self.__dict__["training"] = records

    @cached_property
    @override
    def training(self) -> InMemory:
        return InMemory(*self.read[0].whole())


def measure(seeds: int, names: Sequence[str] = (), first_seed: int = 0, workers: int = 2) -> dict[str, Any]:
    """Train the named reference tasks, or all, with every seed; show progress on standard error."""
    chosen = [reference for reference in REFERENCES if not names or reference.name in names]
    console = Console(stderr=True)
    cells: dict[tuple[str, str], list[dict[str, float]]] = {}
    with (
        Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        jobs = [pool.submit(_cells, reference.name, seed)
                for seed in range(first_seed, first_seed + seeds) for reference in chosen]  # fmt: skip
        task = bar.add_task("training", total=len(jobs))
        for job in as_completed(jobs):
            name, trained = job.result()
            for way, cell in trained.items():
                cells.setdefault((name, way), []).append(cell)
            bar.update(task, advance=1)
    rows = [
        {
            "task": reference.name,
            "way": way,
            "score": reference.score,
            "mean": fmean(cell["score"] for cell in cells[reference.name, way]),
            "std": pstdev(cell["score"] for cell in cells[reference.name, way]),
            "epsilon": cells[reference.name, way][0].get("epsilon"),
            "delta": reference.delta if "epsilon" in cells[reference.name, way][0] else None,
            "bytes": cells[reference.name, way][0].get("bytes"),
            "seconds": fmean(cell["seconds"] for cell in cells[reference.name, way]),
            "sites": reference.sites,
            "seeds": seeds,
            "published": [asdict(figure) for figure in reference.published],
        }
        for reference in chosen
        for way in WAYS
    ]
    return {"rows": rows, "first_seed": first_seed}


def _cells(name: str, seed: int) -> tuple[str, dict[str, dict[str, float]]]:
    """Train one reference task with one seed in every way."""
    reference = next(reference for reference in REFERENCES if reference.name == name)
    with TemporaryDirectory(prefix="cloister-bench-") as folder, on_one_thread():
        federation = _deal(reference, seed, Path(folder))
        studies = {site: _Kept(reference.task, open_site(path)) for site, path in federation.paths.items()}
        studies[_POOL].keep(pooled([study.training for site, study in studies.items() if site not in (_POOL, _TEST)]))
        return name, {way: _cell(federation, studies, reference, way, seed) for way in WAYS}


def _deal(reference: Reference, seed: int, folder: Path) -> Federation:
    """Make a federation whose sites share the training records, and two more: one without any, and the test's."""
    sites = [f"site-{number}" for number in range(1, reference.sites + 1)]
    federation = Federation.create(folder, [*sites, _POOL, _TEST])
    order = np.random.default_rng(seed).permutation(len(reference.labels()))
    tested = round(len(order) * _TESTED)
    rest = order[tested:]
    parts = [rest[part] for part in dirichlet(reference.labels()[rest], reference.sites, _CONCENTRATION, seed)]
    terms = SiteTerms(
        tasks=(reference.task,), held_out=0.0, file="records", collusion_resistant=False, source=reference.source,
        records_per_person=reference.records_per_person,
    )  # fmt: skip
    for site, part in zip([*sites, _TEST], [*parts, order[:tested]], strict=True):
        reference.write(federation.paths[site] / terms.file, part)
    for site in federation.paths:
        federation.write_settings(site, "localhost:1", terms)
    return federation


def _cell(
    federation: Federation, studies: Mapping[str, Study], reference: Reference, way: str, seed: int
) -> dict[str, float]:
    """Train in one way; return the score, processor seconds and, if federated, bytes and ε."""
    epsilon = dict(zip(WAYS[3:], EPSILONS, strict=True)).get(way)
    studies = dict(studies)
    test = studies.pop(_TEST)
    sizes = {site: len(study.training) for site, study in studies.items()}
    federation.sign(reference.settings(epsilon, sizes))
    manifest = read_run(federation.manifest, read_consortium(federation.server).roster()).manifest
    pool = {_POOL: studies.pop(_POOL)}
    cohorts = {"alone": [{site: study} for site, study in studies.items()], "pooled": [pool]}.get(way, [studies])
    start = time.process_time()
    models = [_train(cohort, sizes, manifest, seed) for cohort in cohorts]
    cell = {"seconds": (time.process_time() - start) / len(cohorts)}
    cell["score"] = fmean(_score(reference, test, model) for model in models)
    if way not in WAYS[:2]:
        cell["bytes"] = float(test.untrained(0).layout.size * _BITS // 8 * manifest.settings.rounds)
    if epsilon is not None:
        costs = [manifest.round_cost] * manifest.settings.rounds
        cell["epsilon"] = spent(costs, reference.delta, group=reference.records_per_person)
    return cell


def _train(studies: dict[str, Study], sizes: dict[str, int], manifest: Manifest, seed: int) -> Model:
    """Train for all rounds; return the resulting model."""
    weights = {site: sizes[site] / max(sizes[study] for study in studies) for site in studies}
    sites = Sites.seeded(studies, weights, manifest, seed)
    start = next(iter(studies.values())).start(manifest.settings)
    means = PackedMeans(sites, manifest.packing, charge_for_nobody())
    return result(rounds(start, manifest.settings.rounds, means, means.apply), manifest.settings)


def _score(reference: Reference, test: Study, model: Model) -> float:
    module = test.load_into(test.module(0), model)
    outputs, targets = predictions(module, test.training, _BATCH)
    return reference.scored(outputs.float().numpy(), targets.numpy())


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 100 columns."""
    lines = [f"{'':<24}" + "".join(f"{way:>15}" for way in WAYS)]
    for name, rows in _by_task(report).items():
        cells = "".join(f"{_cell_text(row):>15}" for row in rows)
        lines.append(f"{name + ', ' + rows[0]['score']:<24}{cells}")
    first, row = report["first_seed"], report["rows"][0]
    seeds = f"seeds {first} to {first + row['seeds'] - 1}" if row["seeds"] > 1 else f"seed {first}"
    return "\n".join([*lines, "", f"{row['sites']} sites, Dirichlet(0.5), {seeds}; ± is their standard deviation"])


def written_before(path: Path, seeds: int) -> list[dict[str, Any]]:
    """Return the rows of all tasks that were written beside this page, as JSON; none if there is no such file.

    Raises:
        ConfigError: if they are of another number of seeds.
    """
    beside = path.with_suffix(".json")
    rows: list[dict[str, Any]] = json.loads(beside.read_bytes())["rows"] if beside.exists() else []
    if any(row["seeds"] != seeds for row in rows):
        msg = f"{beside} has results of {rows[0]['seeds']} seeds; use --seeds {rows[0]['seeds']}, or another file"
        raise ConfigError(msg)
    return rows


def write_page(report: dict[str, Any], path: Path, before: Sequence[dict[str, Any]] = ()) -> None:
    """Write a report as Markdown, and beside it as JSON, with the rows written before of tasks that it lacks."""
    rows = _by_task({"rows": before}) | _by_task(report)
    whole = {**report, "rows": [row for reference in REFERENCES for row in rows.get(reference.name, ())]}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in whole["rows"])
    beside = f'{{"first_seed": {whole["first_seed"]}, "rows": [\n{lines}\n]}}\n'
    path.with_suffix(".json").write_text(beside, encoding="utf-8")
    path.write_text(page(whole), encoding="utf-8")


def page(report: dict[str, Any]) -> str:
    """Format a report as a page in Markdown."""
    head = ["task", "score", *WAYS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    costs = ["| task | δ | bytes sent by a site | seconds to train alone | federated | at ε = 8 |", "|" + "---|" * 6]
    published = []
    for name, rows in _by_task(report).items():
        lines.append("| " + " | ".join([name, rows[0]["score"], *map(_cell_text, rows)]) + " |")
        by_way = {row["way"]: row for row in rows}
        private = by_way[WAYS[3]]
        seconds = [f"{by_way[way]['seconds']:.1f}" for way in ("alone", "federated", WAYS[3])]
        costs.append("| " + " | ".join([name, f"{private['delta']:.1e}", f"{private['bytes']:,.0f}", *seconds]) + " |")
        published += [f"- {name}: {figure['what']} ({figure['source']})." for figure in rows[0]["published"]]
    row = report["rows"][0]
    return f"""# Results of the reference tasks

`cloister bench results --write FILE` writes this page, and a JSON file beside it with all figures. `--task` measures
only some tasks again and keeps the others' rows; `--quick` takes one seed and writes nothing.

Each figure is the mean over {row["seeds"]} seeds ± their standard deviation; a seed fixes the test set, a fifth
of all records, and the partition of the rest among {row["sites"]} sites by Dirichlet(0.5). `alone` is the mean
over sites that train on their own records, `pooled` trains on all records in one place, both without noise. At
ε, every site adds noise to each step (DP-SGD), so that ε holds against everyone. Settings and models were chosen
on other splits of the same records; no ε covers that choice. [tasks.md](tasks.md) describes the records.

{chr(10).join(lines)}

What it costs: the bytes of one site's updates over the whole run at ε = 8, before encryption, and the processor
seconds, on one core, in which all sites train one after another, with records in memory.

{chr(10).join(costs)}

Published figures, under other conditions:

{chr(10).join(published)}
"""


def _by_task(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(row["task"] for row in report["rows"])
    return {name: [row for row in report["rows"] if row["task"] == name] for name in names}


def _cell_text(row: dict[str, Any]) -> str:
    if row["score"] == "accuracy":
        return f"{100 * row['mean']:.1f} ± {100 * row['std']:.1f} %"
    return f"{row['mean']:.3f} ± {row['std']:.3f}"
