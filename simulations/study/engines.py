"""Choose the engine that plays a simulation, and say why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.config import did_you_mean
from privacy.errors import ConfigError
from simulations.engine.ray_cluster import Cluster
from simulations.study.on_flower import OnFlower
from simulations.study.participation import Everybody
from simulations.study.protocol import WholeProtocol
from simulations.study.vectorised import Vectorised
from simulations.vectorised.sites import unsuitable

if TYPE_CHECKING:
    from client.task.task import Task
    from privacy.run.manifest import Manifest
    from simulations.study.participation import Participation
    from simulations.study.simulation import Engine

ENGINES = ("auto", "inline", "processes", "vectorised", "flower")
_LARGE = 200_000  # parameters, from which training one site at a time is as fast
_FEW = 4  # sites, for which the whole protocol takes seconds


def choose(
    wanted: str,
    task: Task,
    manifest: Manifest,
    size: int,
    participation: Participation,
    processes: int,
    *,
    cluster: Cluster | None = None,
) -> Engine:
    """Return the engine that was asked for, or one that suits.

    Args:
        wanted: one of `ENGINES`.
        task: of the run.
        manifest: of the run.
        size: the number of parameters.
        participation: who takes part in a round.
        processes: how many may be used.
        cluster: what the engine `flower` asks of Ray, if anything was said about it.

    Raises:
        ConfigError: if there is no such engine, or it cannot play this run.
    """
    if wanted not in ENGINES:
        msg = f"{wanted!a} is not an engine; {did_you_mean(wanted, ENGINES) or f'engines are {_listed(ENGINES)}'}"
        raise ConfigError(msg)
    if cluster is not None and wanted != "flower":
        msg = (
            "ray_address, cpus_per_site and gpus_per_site are for the engine flower, which must be asked for: "
            'engine="flower", or --engine flower'
        )
        raise ConfigError(msg)
    sites, problem = len(manifest.settings.cohort.sizes), unsuitable(task, manifest)
    if wanted == "vectorised":
        if problem:
            msg = f"the engine vectorised cannot play this run: {problem}; use inline, processes or flower"
            raise ConfigError(msg)
        return Vectorised(manifest)
    partly = not isinstance(participation, Everybody)
    if partly and (problem or wanted != "auto"):
        msg = (
            f"with {participation}, only the engine vectorised plays"
            f"{f', which cannot play this run: {problem}' if problem else ''}; let all sites take part"
        )
        raise ConfigError(msg)
    if wanted == "flower":
        asked = cluster or Cluster()
        asked.check(processes)
        return OnFlower(asked)
    if wanted != "auto":
        return WholeProtocol(wanted)
    if problem:
        name = "processes" if processes > 1 and sites > _FEW else "inline"
        return WholeProtocol(name, f"the sites cannot train together: {problem}")
    if partly or sites > _FEW:
        small = (
            f"{sites} sites" if size < _LARGE else f"{sites} sites, although models of {size:,} parameters gain little"
        )
        return Vectorised(manifest, f"the fastest for {small}; inline, processes and flower play the whole protocol")
    return WholeProtocol("inline", f"{sites} sites: the whole protocol takes seconds")


def processes_here() -> int:
    """Return how many processes this machine can run at once."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
