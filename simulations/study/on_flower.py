"""The engine `flower`: the whole protocol, with sites on Flower's own engine, on one machine or a Ray cluster."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from typing_extensions import override

from client.app import make_app
from client.data.inputs import mapped, named
from client.data.own_records import OwnRecords
from client.data.site_records import InMemory
from client.flower import folders_in
from client.settings import read_site
from client.site import Site
from simulations.engine.flower_grid import flower_grid
from simulations.study.protocol import WholeProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flwr.app import Context

    from client.task.probe import Example
    from client.task.task import Task
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation, SiteTerms
    from simulations.engine.ray_cluster import Cluster
    from simulations.pools import Pool
    from simulations.study.protocol import OpenGrid
    from simulations.study.simulation import Simulation

_RECORDS, _TARGETS = "records.safetensors", "targets"  # in a site's folder; beside its inputs


class OnFlower(WholeProtocol):
    """Plays rounds by Flower's engine; sites and this process share a folder."""

    def __init__(self, cluster: Cluster, why: str = "you asked for it") -> None:
        super().__init__("flower", f"{why}; {cluster}")
        self._cluster = cluster

    @override
    def _terms(self, settings: RunSettings) -> SiteTerms:
        return replace(super()._terms(settings), device="auto" if self._cluster.gpus else "cpu")

    @override
    @contextmanager
    def _opened(self, simulation: Simulation, federation: Federation) -> Iterator[tuple[Site, OpenGrid]]:
        for site, path in federation.paths.items():
            write_records(path, simulation.records[site])
        own = type(simulation.task)
        local = own if own.__module__ == "__main__" else None
        app = make_app(_Sites(federation.folder.absolute(), max(1, int(self._cluster.cpus)), local))
        with self._cluster.connected(
            simulation.processes, federation.folder.absolute(), "" if local else simulation.task_name
        ):
            first = StoredSite(read_site(federation.paths[simulation.sites[0]]))
            yield first, lambda _: flower_grid(app, len(simulation.sites), self._cluster)


class StoredSite(Site):
    """A site that reads its records as tensors from a file beside its keys, whatever form they came in."""

    @override
    def load(self, task: Task, name: str, example: Example) -> OwnRecords:
        return OwnRecords(read_records(self.place.folder, example))


def write_records(folder: Path, pool: Pool) -> None:
    """Write a site's records beside its keys."""
    tensors = {**named(pool.inputs), _TARGETS: pool.targets}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / _RECORDS)


def read_records(folder: Path, example: Example) -> InMemory:
    """Return the records that `write_records` wrote, mapped into memory that processes share, in an example's form."""
    stored = load_file(folder / _RECORDS)
    parts = iter([stored[name] for name in named(example.inputs)])
    return InMemory(mapped(lambda _: next(parts), example.inputs), stored[_TARGETS])


@dataclass(frozen=True)
class _Sites:
    """Finds a node's site in whatever process of Flower's engine a message arrives. It is pickled with each."""

    folder: Path
    threads: int
    local: type[Task] | None  # the task, if it is defined in a notebook or script, which other processes cannot import

    def __call__(self, context: Context) -> Site:
        if self.local is not None:
            vars(sys.modules["__main__"]).setdefault(self.local.__name__, self.local)
        return _open(folders_in(self.folder)[int(context.node_config["partition-id"])], self.threads)


@cache
def _open(folder: Path, threads: int) -> StoredSite:
    torch.set_num_threads(threads)
    return StoredSite(read_site(folder))
