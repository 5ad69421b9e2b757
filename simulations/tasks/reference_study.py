"""Prepare the reference study: hospitals with keys, settings and records, and a signed run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from importlib import resources
from math import inf
from typing import TYPE_CHECKING

from privacy.config import read_toml
from privacy.errors import ConfigError
from privacy.run.settings import RunSettings
from privacy.storage import read_file
from simulations.engine.federation import Federation, SiteTerms
from simulations.tasks.hospitals import DECLARED_SIZES, write_hospital_records

if TYPE_CHECKING:
    from pathlib import Path

    from client.settings import Personal

_MARK = ".cloister-demo"  # marks a folder that was made here and may be replaced


@dataclass(frozen=True)
class Study:
    """A federation of simulated hospitals, ready to run."""

    federation: Federation
    settings: RunSettings
    terms: SiteTerms
    patients: int


def prepare_study(
    folder: Path, run: Path | None = None, *, limits: bool = True, personal: Personal | None = None
) -> Study:
    """Make the hospitals in `folder` and sign the run: the reference study's, or the one in the file `run`.

    With `limits`, the hospitals have the demo's policies; without, they allow whatever a simulation asks for. With
    `personal`, each also trains a model for itself.

    Raises:
        ConfigError: if the folder holds other files or is a link, or the run names sites that are not hospitals.
    """
    with resources.as_file(resources.files("simulations.tasks") / "diagnosis.toml") as own:
        settings, text = read_toml(run or own, RunSettings), read_file(run or own)
    sites = tuple(settings.cohort.sizes)
    if not set(sites) <= set(DECLARED_SIZES):
        msg = f"{run}: [cohort.sizes] may name {', '.join(DECLARED_SIZES)}, the hospitals that have records here"
        raise ConfigError(msg)
    if folder.is_symlink():
        msg = (
            f"{folder} is a link, and this command replaces the folder; name the folder itself, or another one, with "
            "--folder"
        )
        raise ConfigError(msg)
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            msg = f"{folder} contains files that this command did not make; name another folder with --folder"
            raise ConfigError(msg)
        shutil.rmtree(folder)
    (folder / "coordinator").mkdir(parents=True)
    (folder / _MARK).write_text("`cloister demo` and `cloister simulate` replace this folder\n")
    (folder / "coordinator" / "run.toml").write_bytes(text)
    federation = Federation.create(folder, sites, consortium="demo")
    federation.sign(settings)
    patients = write_hospital_records(federation.paths)
    terms = SiteTerms(tasks=(settings.task,))
    if not limits:
        terms = SiteTerms(
            (settings.task,), epsilon=inf, maximum_epsilon=inf, minimum_noise_multiplier=0.0, shared_noise=True,
            vote_epsilon=inf, colluding_sites=0, collusion_resistant=False,
            strategies=(str(settings.strategy["name"]),),
        )  # fmt: skip
    return Study(federation, settings, replace(terms, personal=personal), sum(patients.values()))
