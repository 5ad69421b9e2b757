"""A study as an engine plays it, and what an engine tells of each round."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from client.state.initial_model import files_of, find_model
from client.state.model_parts import drained, layout_of, set_tensors
from client.task.probe import make_model
from privacy.accounting.accounting import epsilon
from privacy.codec.update import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from client.state.personal_models import Values
    from client.task.task import Task
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings
    from simulations.pools import Division
    from simulations.study.checkpoints import Checkpoint
    from simulations.study.population import Population
    from simulations.study.site_privacy import SiteNoise


@dataclass(frozen=True)
class Simulation:
    """Sites, their records, and a run."""

    task: Task
    task_name: str
    settings: RunSettings
    records: Division  # of the sites
    population: Population
    site_noise: SiteNoise | None  # of privacy whose unit is a site
    device: torch.device
    folder: Path  # where sites and server keep what they keep
    resumable: bool  # whether an earlier process may have begun there
    processes: int
    public: Path | None = None  # the folder that has the model that the run starts from, if it names one

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(self.records.parts)

    def module(self) -> nn.Module:
        """Make the module that the run starts from."""
        return self.loaded(self.start()) if self.public else make_model(self.task, self.settings.model_seed)

    def initial_files(self) -> list[Path]:
        """Return the files that have the model that the run starts from."""
        return files_of(self.public, self.settings.start.model) if self.public and self.settings.start else []

    def start(self) -> Model:
        """Return the model that the run starts from.

        Raises:
            RefusedError: if the run names one that does not belong to the task.
        """
        module = make_model(self.task, self.settings.model_seed)
        layout = layout_of(module, self.task.local)
        untrained = Model(drained(module, layout), layout)
        if not self.settings.start or not self.public:
            return untrained
        return find_model(self.public, self.settings.start.model, untrained, "this simulation")

    def loaded(self, model: Model) -> nn.Module:
        """Return a module with a model in it, on the CPU."""
        module = make_model(self.task, self.settings.model_seed)
        set_tensors(module, model)
        return module


@dataclass(frozen=True, eq=False)
class Played:
    """A round, once it is over."""

    number: int
    model: Model  # that the sites have now, without what stays at each
    sites: NDArray[np.intp]  # the numbers of those that took part
    charged: NDArray[np.intp]  # and of those that charged the round to their ledgers
    released: bool  # whether their sum was; otherwise the model is the one before
    bytes_up: int  # all updates, as they are sent
    seconds: float
    problems: Mapping[str, str]  # of sites that should have taken part, by name
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # what the engine needs to go on, by name
    parts: Mapping[str, Iterable[NDArray[Any]]] = field(default_factory=dict)  # the same, too large for memory


class Engine(Protocol):
    """Plays a simulation's rounds."""

    name: str
    why: str

    def play(self, simulation: Simulation, begun: Checkpoint) -> Iterator[Played]:
        """Yield each round after `begun` once it is over; a generator that is closed ends the run.

        Raises:
            CloisterError: if the run fails.
        """
        ...

    def at_sites(self, simulation: Simulation) -> Callable[[str], Values]:
        """Return a function that reads, by a site's name, the parameters that stay there after its last round.

        They are empty before its first, and can be read while the simulation's folder is there.
        """
        ...


class Spent:
    """The ε that sites have spent, by the rounds that they took part in."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._known = manifest, {0: 0.0}
        self._names = list(manifest.settings.cohort.sizes)
        self.rounds = np.zeros(len(self._names), np.int64)  # of each site

    def add(self, sites: NDArray[np.intp]) -> None:
        """Charge a round to these sites."""
        self.rounds[sites] += 1

    @property
    def by_site(self) -> dict[str, float]:
        """The ε of each site's people; infinite without noise."""
        return {site: self._of(count) for site, count in zip(self._names, self.rounds.tolist(), strict=True)}

    @property
    def highest(self) -> float:
        """The ε of the sites that took part most often."""
        return self._of(int(self.rounds.max()))

    def _of(self, count: int) -> float:
        if count not in self._known:
            delta = self._manifest.settings.privacy.delta
            self._known[count] = epsilon([self._manifest.round_cost] * count, delta)
        return self._known[count]
