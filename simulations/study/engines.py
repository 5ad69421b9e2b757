"""Choose the engine that plays a simulation, and say why."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from privacy.config import did_you_mean
from privacy.errors import ConfigError
from simulations.engine.ray_cluster import Cluster
from simulations.study.vectorised import Vectorised
from simulations.vectorised.gradients import unmappable
from simulations.vectorised.sites import unsuitable
from strategies.registry import algorithm_of

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest
    from simulations.study.simulation import Engine, Simulation

ENGINES = ("auto", "inline", "processes", "vectorised", "flower")
_LARGE = 200_000  # parameters, from which training one site at a time is as fast
_FEW = 4  # sites, for which the whole protocol takes seconds


def choose(wanted: str, simulation: Simulation, manifest: Manifest, *, cluster: Cluster | None = None) -> Engine:
    """Return the engine that was asked for, or one that suits.

    Args:
        wanted: one of `ENGINES`.
        simulation: what it will play.
        manifest: of the run.
        cluster: what the engine `flower` asks of Ray, if anything was said about it.

    Raises:
        ConfigError: if there is no such engine, or it cannot play this run.
    """
    problem = _problem(simulation, manifest)
    if not problem and wanted in {"auto", "vectorised"}:
        problem = unmappable(simulation.task, simulation.module())
    _check(wanted, simulation, cluster, problem)
    if wanted != "auto":
        return _asked_for(wanted, manifest, cluster)
    sites, size = len(simulation.sites), simulation.start().layout.size
    if problem:
        name = "processes" if simulation.processes > 1 and sites > _FEW else "inline"
        return _whole_protocol(name, f"the sites cannot train together: {problem}")
    if simulation.site_noise:
        return Vectorised(manifest, "site privacy needs a party that sees updates")
    if sites > _FEW:
        small = (
            f"{sites} sites" if size < _LARGE else f"{sites} sites, although models of {size:,} parameters gain little"
        )
        return Vectorised(manifest, f"the fastest for {small}; inline, processes and flower play the whole protocol")
    return _whole_protocol("inline", f"{sites} sites: the whole protocol takes seconds")


def _asked_for(wanted: str, manifest: Manifest, cluster: Cluster | None) -> Engine:
    if wanted == "vectorised":
        return Vectorised(manifest)
    if wanted != "flower":
        return _whole_protocol(wanted, "you asked for it")
    from simulations.study.on_flower import OnFlower  # noqa: PLC0415 - see `_whole_protocol`

    return OnFlower(cluster or Cluster())


def _whole_protocol(name: str, why: str) -> Engine:
    from simulations.study.protocol import WholeProtocol  # noqa: PLC0415 - loads Flower and Opacus

    return WholeProtocol(name, why)


def _problem(simulation: Simulation, manifest: Manifest) -> str | None:
    """Return why the sites cannot train together; None if they can."""
    if simulation.site_noise and (own := algorithm_of(manifest, "this simulation").own):
        return f"with site privacy, no site may keep what its strategy keeps ({_listed(own)}); choose fedavg"
    return unsuitable(simulation.task, manifest)


def _check(wanted: str, simulation: Simulation, cluster: Cluster | None, problem: str | None) -> None:
    msg = ""
    if wanted not in ENGINES:
        msg = f"{wanted!a} is not an engine; {did_you_mean(wanted, ENGINES) or f'engines are {_listed(ENGINES)}'}"
    elif cluster is not None and wanted != "flower":
        msg = (
            "ray_address, cpus_per_site and gpus_per_site are for the engine flower, which must be asked for: "
            'engine="flower", or --engine flower'
        )
    elif simulation.site_noise and (problem or wanted not in {"auto", "vectorised"}):
        msg = (
            "site privacy needs a trusted party that sees updates, which the whole protocol has not: only the engine "
            f"vectorised plays it{f', which cannot play this run: {problem}' if problem else ''}"
        )
    elif wanted == "vectorised" and problem:
        msg = f"the engine vectorised cannot play this run: {problem}; use inline, processes or flower"
    if msg:
        raise ConfigError(msg)
    if wanted == "flower":
        (cluster or Cluster()).check(simulation.processes)


def processes_here() -> int:
    """Return how many processes this machine can run at once."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)
