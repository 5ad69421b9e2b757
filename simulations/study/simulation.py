"""A study as an engine plays it, and what an engine tells of each round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from client.state.model_parts import drained, layout_of, set_tensors
from client.task.probe import make_model
from privacy.accounting.accounting import epsilon
from privacy.codec.update import Model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import nn

    from client.task.task import Task
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings
    from simulations.pools import Division
    from simulations.study.participation import Participation


@dataclass(frozen=True)
class Simulation:
    """Sites, their records, and a run."""

    task: Task
    task_name: str
    settings: RunSettings
    records: Division  # of the sites
    participation: Participation
    seed: int  # of what chance decides outside the run: who takes part
    device: torch.device
    folder: Path  # where sites and server keep what they keep
    processes: int

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The sites' names."""
        return tuple(self.records.parts)

    def module(self) -> nn.Module:
        """Make the untrained module."""
        return make_model(self.task, self.settings.model_seed)

    def start(self) -> Model:
        """Return the model that the run starts from."""
        module = self.module()
        layout = layout_of(module, self.task.local)
        return Model(drained(module, layout), layout)

    def loaded(self, model: Model) -> nn.Module:
        """Return a module with a model in it, on the CPU."""
        module = self.module()
        set_tensors(module, model)
        return module


@dataclass(frozen=True, eq=False)
class Played:
    """A round, once it is over."""

    number: int
    model: Model  # that the sites have now
    sites: tuple[str, ...]  # that took part
    released: bool  # whether their sum was; otherwise the model is the one before
    bytes_up: int  # all updates, as they are sent
    seconds: float
    problems: Mapping[str, str]  # of sites that should have taken part, by name


class Engine(Protocol):
    """Plays a simulation's rounds."""

    name: str
    why: str

    def play(self, simulation: Simulation) -> Iterator[Played]:
        """Yield each round once it is over; a generator that is closed ends the run.

        Raises:
            CloisterError: if the run fails.
        """
        ...


class Spent:
    """The ε that sites have spent, by the rounds that they took part in."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._rounds, self._known = manifest, dict[str, int](), {0: 0.0}

    def add(self, sites: tuple[str, ...]) -> None:
        """Charge a round to these sites."""
        for site in sites:
            self._rounds[site] = self._rounds.get(site, 0) + 1

    def of(self, site: str) -> float:
        """Return the ε of a site's people; infinite without noise."""
        count = self._rounds.get(site, 0)
        if count not in self._known:
            delta = self._manifest.settings.privacy.delta
            self._known[count] = epsilon([self._manifest.round_cost] * count, delta)
        return self._known[count]

    @property
    def highest(self) -> float:
        """The ε of the sites that took part most often."""
        most = max(self._rounds, key=self._rounds.__getitem__, default="")
        return self.of(most)
