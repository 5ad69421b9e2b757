"""`cloister audit privacy`: run canaries through a site's own pipeline, and attack the resulting model.

First the site's own tasks are tested: see `cloister.audit.gradients`. Then an attacker sees the final model and knows
everything but the coins, which suffices for the bounds on ε. The other checks look inside the pipeline: at each round's
update, and at the canaries in each batch.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.metadata import version
from itertools import pairwise
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from client.data.sources.registry import Source
from client.settings import Computing, read_site
from client.task.installed import check_installed
from client.work.works import is_survey
from cloister.audit.canaries import WEIGHT, Canaries, Role, set_up
from cloister.audit.checks import CONFIDENCE, Check, Sighting, check, contribution, noise_ratio
from cloister.audit.gradients import check_tasks
from cloister.audit.local_run import Scratch
from cloister.audit.statement import AUDIT
from cloister.audit.whole import check_whole
from privacy.accounting.calibration import calibrate
from privacy.clock import date
from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings
from privacy.storage import write_atomically
from simulations.tasks.hospitals import FILE_NAME, write_hospital_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from rich.console import Console

# The scratch consortium: the site, with canaries beside its records; one with noise alone, to compare; and one where
# canaries have gradients in the whole model.
_SITES: tuple[Role, ...] = ("beside", "silent", "loud")
_FEWEST = 100
_WIDE = 50  # characters of an observation in the table


@dataclass(frozen=True)
class Subject:
    """The audited pipeline: a task, its records, and its device."""

    name: str
    task: str
    source: Source
    device: str
    folder: Path
    tasks: tuple[str, ...]  # all training tasks that the policy allows
    computing: Computing

    @classmethod
    def of(cls, site: Path) -> Subject:
        """Return a real site, with the first training task that its policy allows.

        Raises:
            ConfigError: if its policy allows no task that trains.
        """
        place = read_site(site)
        settings = place.settings
        source, device, computing = place.source, settings.device, settings.training
        for task in settings.policy.tasks:
            check_installed(settings.policy, task, settings.site)
        tasks = tuple(task for task in settings.policy.tasks if not is_survey(task))
        if tasks:
            return cls(settings.site, tasks[0], source, device, place.folder, tasks, computing)
        msg = f"{place.folder}: its policy allows no task that trains, so there is no DP-SGD to audit"
        raise ConfigError(msg)

    @classmethod
    def reference(cls, folder: Path) -> Subject:
        """Return the reference study's smallest hospital, with its records in `folder`."""
        write_hospital_records({"east": folder})
        task = "simulations.tasks.diagnosis:Diagnosis"
        return cls("the reference study", task, Source(folder / FILE_NAME), "auto", folder, (task,), Computing())


@dataclass(frozen=True)
class Audit:
    """The result of an audit."""

    report: dict[str, Any]
    sighting: Sighting | None  # None if the task is refused: canaries are refused with it


def audit(site: Path | None, epsilon: float, canaries: int, console: Console) -> Audit:
    """Run canaries through a site's pipeline in a scratch folder, and check every claim against the observations.

    Raises:
        CloisterError: if the site's settings or records cannot be used.
    """
    started = time.monotonic()
    if canaries < _FEWEST:
        msg = f"{canaries} canaries are too few; use {_FEWEST} or more"
        raise ConfigError(msg)
    with TemporaryDirectory(prefix="cloister-audit-") as name:
        folder = Path(name)
        subject = Subject.of(site) if site else Subject.reference(folder / "records")
        settings = _settings(epsilon, canaries)
        own = check_tasks(subject.tasks, subject.folder, subject.source, subject.device, subject.computing)
        about = {"site": subject.name, "task": subject.task}
        if not own.held:  # agents refuse the task, and canaries with it
            return Audit(_refused(own, epsilon, settings) | about, None)
        with set_up(folder / "canaries.json", subject.task, subject.source, canaries):
            scratch = Scratch.create(folder / "scratch", settings, "included", subject.device)
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
                task = bar.add_task("rounds", total=settings.rounds * 2 + 1)
                # The same coins at all sites: with equal numbers of records, a shared seed would give equal noise.
                included = np.random.default_rng().random(canaries) < 0.5  # noqa: PLR2004 - fair coins
                seen = [_sight(scratch, site_name, included, lambda: bar.advance(task)) for site_name in _SITES]
    report = _report(own, seen, settings) | about | {"seconds": round(time.monotonic() - started, 1)}
    return Audit(report, seen[0])


def _settings(epsilon: float, canaries: int) -> RunSettings:
    """Return the reference study's run at another ε, at these sites, with a range that no update exceeds."""
    with resources.as_file(resources.files("simulations.tasks") / "diagnosis.toml") as own:
        run = read_toml(own, RunSettings)
    training, norm, delta = run.training, run.privacy.max_grad_norm, run.privacy.delta
    if training is None or norm is None:
        msg = f"{own}: an audit needs a run that trains"
        raise ConfigError(msg)
    sigma = calibrate(epsilon, delta, training.sample_rate, training.steps * run.rounds)
    steps, size = training.steps, canaries // 2
    farthest = steps + 8 * sigma * sqrt(steps)  # whole gradients that a coordinate moves in a round
    return replace(
        run,
        name="audit",
        task=f"{Canaries.__module__}:{Canaries.__name__}",
        privacy=Privacy(max_grad_norm=norm, delta=delta, noise_multiplier=sigma),
        encryption=Encryption(farthest * _gradient(run, size), profile="precise", collusion_resistant=False),
        cohort=Cohort(dict.fromkeys(map(str, _SITES), size), minimum=len(_SITES)),
    )


def _gradient(run: RunSettings, size: int) -> float:
    """Return how far one whole clipped gradient moves a coordinate."""
    if run.training is None or run.privacy.max_grad_norm is None:
        return 0.0
    return run.training.learning_rate * run.privacy.max_grad_norm / max(1.0, run.training.sample_rate * size)


def _sight(scratch: Scratch, name: Role, included: NDArray[np.bool_], advance: Callable[[], object]) -> Sighting:
    """Put these canaries `(m,)` into a site's records, run its rounds in the given role, and observe."""
    settings = scratch.run.manifest.settings
    site = scratch.sites[name]
    site.place.path(site.settings.data.file).write_text("\n".join(map(str, np.flatnonzero(included).tolist())))
    study = site.study(settings.task)
    watch = study.task
    if not isinstance(watch, Canaries):
        raise TypeError(watch)
    study.prepare(settings)  # before the role is set: with silent canaries, any way to compute gradients would pass
    _ = study.training  # read and test the records before noting batches
    watch.role = name
    path = []
    with watch.watched():
        for vector in _path(scratch, name):
            path.append(vector)
            advance() if len(path) > 1 else None
    batches = np.zeros((len(watch.batches), included.size), dtype=np.bool_)
    for step, batch in enumerate(watch.batches):
        batches[step, list(batch)] = True
    whole, layout = _gradient(settings, settings.cohort.sizes[name]), study.layout(settings)
    rounds = [layout.unflatten(before - after) for before, after in pairwise(path)]
    moved = {
        key: np.array([vectors[key].reshape(-1) for vectors in rounds], dtype=np.float64) / whole
        for key, _ in layout.shapes
    }
    charged = tuple(scratch.charged(name))
    return Sighting(included, moved.pop(WEIGHT), batches, charged, settings.privacy.delta, moved)


def _path(scratch: Scratch, name: Role) -> Iterator[NDArray[np.float32]]:
    """Yield the parameters before and after all rounds; as `loud`, for one round, whose update may exceed the range."""
    if name != "loud":
        yield from (model.vector for model in scratch.rounds(name))
        return
    update = scratch.first_update(name).vector
    yield np.zeros_like(update)
    yield update


def _refused(own: Check, epsilon: float, settings: RunSettings) -> dict[str, Any]:
    """Report on a refused task: no bounds on ε can be measured."""
    return {
        "passed": False,
        "epsilon_claimed": epsilon,
        "epsilon_lower": None,
        "epsilon_formal": None,
        "confidence": CONFIDENCE,
        "delta": settings.privacy.delta,
        "canaries": 0,
        "checks": [asdict(own)],
        **_stamp(),
    }


def _stamp() -> dict[str, Any]:
    return {"date": date(), "version": version("cloister")}


def _report(own: Check, seen: list[Sighting], settings: RunSettings) -> dict[str, Any]:
    first, silent, loud = seen
    checks = [own, *check(first, silent), *check_whole(silent, loud)]
    low, ratio, high = noise_ratio(first, CONFIDENCE)
    return {
        "passed": all(result.held for result in checks),
        "epsilon_claimed": first.claimed,
        "epsilon_lower": first.gaussian(CONFIDENCE),  # implementation test
        "epsilon_formal": first.formal(CONFIDENCE, first.delta),  # formal lower bound
        "confidence": CONFIDENCE,
        "delta": first.delta,
        "observer": "the final model; for the other checks, every round's update and who was in each batch",
        "canaries": first.included.size,
        "included": int(first.included.sum()),
        "noise_multiplier": first.charged[0].noise_multiplier,
        "sample_rate": first.charged[0].sample_rate,
        "max_grad_norm": settings.privacy.max_grad_norm,
        "rounds": len(first.moved),
        "steps_charged": first.steps,
        "steps_taken": len(first.batches),
        "noise_ratio": ratio,
        "noise_ratio_interval": [low, high],
        "contribution": contribution(first)[0],
        "checks": [asdict(result) for result in checks],
        **_stamp(),
    }


def table(report: dict[str, Any]) -> Table:
    """Format a report as a table, one check per row."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "check", "claimed", "seen"):
        grid.add_column(column, no_wrap=True)
    for result in report["checks"]:
        mark = "✓" if result["held"] else "✗"
        seen = (
            result["seen"] if len(result["seen"]) < _WIDE else f"{result['seen'][:_WIDE]}…"
        )  # the verdict shows it in full
        grid.add_row(mark, result["name"], result["claim"], seen, style=None if result["held"] else "red")
    return grid


def verdict(report: dict[str, Any]) -> str:
    """Return the result in one sentence."""
    failed = [result for result in report["checks"] if not result["held"]]
    if failed:
        claims = "; ".join(f"{result['name']}: claimed {result['claim']}, seen {result['seen']}" for result in failed)
        return f"✗ {report['site']}: the guarantee is refuted. {claims}. Train on no real records until it is fixed"
    return (
        f"✓ {report['site']}: ε {report['epsilon_claimed']:.2f} claimed at δ {report['delta']:g}; "
        f"an attack shows {report['epsilon_lower']:.2f} (implementation test, 95 %) "
        f"and {report['epsilon_formal']:.2f} (formal lower bound, 95 %)"
    )


def keep(site: Path, report: dict[str, Any]) -> Path:
    """Write an audit into the site's folder, for its statement; return the path."""
    path = read_site(site).folder / AUDIT
    write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False).encode() + b"\n")
    return path
