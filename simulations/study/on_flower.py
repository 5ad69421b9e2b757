"""The engine `flower`: the whole protocol, with sites on Flower's own engine, on one machine or a Ray cluster."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from typing_extensions import override

from client.app import make_app
from client.settings import read_site
from simulations.engine.flower_grid import flower_grid
from simulations.engine.stored_site import RECORDS, StoredSite, write_records
from simulations.study.protocol import WholeProtocol, with_turnout

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flwr.app import Context

    from client.site import Site
    from client.task.task import Task
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation, SiteTerms
    from simulations.engine.ray_cluster import Cluster
    from simulations.study.protocol import OpenGrid
    from simulations.study.simulation import Simulation
    from transport.flower import App


class OnFlower(WholeProtocol):
    """Plays rounds by Flower's engine; sites and this process share a folder."""

    def __init__(self, cluster: Cluster, why: str = "you asked for it") -> None:
        super().__init__("flower", f"{why}; {cluster}")
        self._cluster = cluster

    @override
    def _terms(self, settings: RunSettings) -> SiteTerms:
        return replace(super()._terms(settings), file=RECORDS, device="auto" if self._cluster.gpus else "cpu")

    @override
    @contextmanager
    def _opened(self, simulation: Simulation, federation: Federation) -> Iterator[tuple[Site, OpenGrid]]:
        app, folder = self.stored(simulation, federation), federation.folder.absolute()
        task = "" if own_task(simulation) else simulation.task_name
        with self._cluster.connected(simulation.processes, folder, task):
            first = StoredSite(read_site(federation.paths[simulation.sites[0]]))
            yield first, lambda _: flower_grid(app, len(simulation.sites), self._cluster)

    def stored(self, simulation: Simulation, federation: Federation) -> App:
        """Write the sites' records beside their keys; return the app of all sites, which can be pickled."""
        for site, path in federation.paths.items():
            write_records(simulation.records[site], path / RECORDS)
        threads = max(1, int(self._cluster.cpus))
        sites = _Sites(federation.folder.absolute(), simulation.sites, threads, own_task(simulation))
        return with_turnout(make_app(sites), simulation.population, _number_of)


def own_task(simulation: Simulation) -> type[Task] | None:
    """Return the task's class if it is defined in a notebook or script, which other processes cannot import."""
    kind = type(simulation.task)
    return kind if kind.__module__ == "__main__" else None


@dataclass(frozen=True)
class _Sites:
    """Finds a node's site in whatever process of Flower's engine a message arrives. It is pickled with each."""

    folder: Path
    names: tuple[str, ...]
    threads: int
    local: type[Task] | None  # `own_task`

    def __call__(self, context: Context) -> Site:
        if self.local is not None:
            vars(sys.modules["__main__"]).setdefault(self.local.__name__, self.local)
        return _open(self.folder / self.names[_number_of(context)], self.threads)


def _number_of(context: Context) -> int:
    """Return the number of a node's site: Flower's engine counts its nodes."""
    return int(context.node_config["partition-id"])


@cache
def _open(folder: Path, threads: int) -> StoredSite:
    torch.set_num_threads(threads)
    return StoredSite(read_site(folder))
