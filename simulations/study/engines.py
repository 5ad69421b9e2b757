"""Choose the engine that plays a simulation, and say why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.config import did_you_mean
from privacy.errors import ConfigError
from simulations.study.protocol import WholeProtocol
from simulations.study.vectorised import Vectorised
from simulations.vectorised.sites import unsuitable
from strategies.registry import algorithm_of

if TYPE_CHECKING:
    from client.task.task import Task
    from privacy.run.manifest import Manifest
    from simulations.study.simulation import Engine
    from simulations.study.site_privacy import SiteNoise

ENGINES = ("auto", "inline", "processes", "vectorised")
_LARGE = 200_000  # parameters, from which training one site at a time is as fast
_FEW = 4  # sites, for which the whole protocol takes seconds


def choose(wanted: str, task: Task, manifest: Manifest, size: int, noise: SiteNoise | None, processes: int) -> Engine:
    """Return the engine that was asked for, or one that suits.

    Args:
        wanted: one of `ENGINES`.
        task: of the run.
        manifest: of the run.
        size: the number of parameters.
        noise: of privacy whose unit is a site.
        processes: how many may be used.

    Raises:
        ConfigError: if there is no such engine, or it cannot play this run.
    """
    if wanted not in ENGINES:
        msg = f"{wanted!a} is not an engine; {did_you_mean(wanted, ENGINES) or f'engines are {_listed(ENGINES)}'}"
        raise ConfigError(msg)
    sites, problem = len(manifest.settings.cohort.sizes), unsuitable(task, manifest)
    if noise and (own := algorithm_of(manifest, "this simulation").own):
        problem = f"with site privacy, no site may keep what its strategy keeps ({', '.join(own)}); choose fedavg"
    if wanted == "vectorised":
        if problem:
            msg = f"the engine vectorised cannot play this run: {problem}; use inline or processes"
            raise ConfigError(msg)
        return Vectorised(manifest)
    if noise and (problem or wanted != "auto"):
        msg = (
            "site privacy needs a trusted party that sees updates, which the whole protocol has not: only the engine "
            f"vectorised plays it{f', which cannot play this run: {problem}' if problem else ''}"
        )
        raise ConfigError(msg)
    if wanted != "auto":
        return WholeProtocol(wanted)
    if problem:
        name = "processes" if processes > 1 and sites > _FEW else "inline"
        return WholeProtocol(name, f"the sites cannot train together: {problem}")
    if noise or sites > _FEW:
        small = (
            f"{sites} sites" if size < _LARGE else f"{sites} sites, although models of {size:,} parameters gain little"
        )
        return Vectorised(manifest, f"the fastest for {small}; inline and processes play the whole protocol")
    return WholeProtocol("inline", f"{sites} sites: the whole protocol takes seconds")


def processes_here() -> int:
    """Return how many processes this machine can run at once."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
