"""`cloister simulate`: run a study over the reference study's hospitals, in this process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from client.settings import PersonalAlone
from client.state.initial_model import files_of
from client.task.installed import find_for_run
from client.task.task import import_class
from cloister.views.observers import against_whom, cost_of_votes
from cloister.views.run import RoundTable, listening
from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.ledger.balance import without_infinity
from privacy.run.settings import RunSettings
from server.settings import read_consortium, read_run
from simulations.engine.inline import run_inline
from simulations.engine.results import read_own_metrics, read_personal_metrics, read_results
from simulations.study.runner import find_public
from simulations.tasks.reference_study import prepare_study

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from privacy.run.manifest import Manifest
    from simulations.engine.results import Results
    from simulations.tasks.reference_study import Study


def simulate(run: Path | None, folder: Path, console: Console, personal: Path | None = None) -> dict[str, Any]:
    """Run the reference study, or the run in a file, in this process; return the results.

    Args:
        run: the run's settings; None for the reference study's.
        folder: where to make the hospitals.
        console: shows the rounds.
        personal: a file with the `[personal]` of all hospitals, such as a site's `site.toml`; None for none.

    Raises:
        CloisterError: if settings are wrong, or the run failed.
    """
    settings = read_toml(run, RunSettings) if run else None
    if settings and settings.evaluation:
        msg = f"{run}: this run evaluates a model and trains nothing; simulate the run that trains it"
        raise ConfigError(msg)
    if settings and settings.statistics:
        msg = f"{run}: this run computes statistics and trains nothing; use `cloister stats {run}`"
        raise ConfigError(msg)
    own = read_toml(personal, PersonalAlone).personal if personal else None
    files: list[Path] = []
    if run and settings:  # fail before any folder is made
        find_for_run(run, settings.task)
        task = import_class(settings.task)
        if settings.start and (public := find_public(settings.start, task, run)):
            files = files_of(public, settings.start.model)
    study = prepare_study(folder, run, limits=False, personal=own)
    study.federation.share(files)
    results = run_here(study, console)
    manifest = _manifest_of(study)
    last = next(event for event in reversed(results.events) if event.get("released"))
    return {
        "rounds": results.rounds,
        **without_infinity(read_own_metrics(study.federation, last["round"]), None),
        "epsilon": last["epsilon"],
        **against_whom(manifest),
        **cost_of_votes(manifest),
        **({"personal": read_personal_metrics(study.federation)} if own else {}),
        "model": {site: str(path) for site, path in results.paths.items()},
        "model_digest": results.digests,
    }


def _manifest_of(study: Study) -> Manifest:
    federation = study.federation
    return read_run(federation.manifest, read_consortium(federation.server).roster()).manifest


def run_here(study: Study, console: Console) -> Results:
    """Run a prepared study in this process, and show its rounds.

    Raises:
        CloisterError: if the run failed.
    """
    for site in study.federation.sites:
        study.federation.write_settings(site, "localhost:1", study.terms)
    own = partial(read_own_metrics, study.federation) if study.settings.training else None
    with RoundTable(console, own=own) as table, listening(table):
        run_inline(study.federation)
    return read_results(study.federation)
