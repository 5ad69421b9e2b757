"""The models that simulated sites have of their own, whatever the engine.

    local       the shared model with the parameters that stay at the site (`Task.local`), from its last round
    personal    trained by the site for itself, without noise, as `[personal]` of a site.toml says: after a round only
                by the sites that took part in it, after the last one by all. It has their local parameters, too

For each site, its numbers are kept as a vector, out of memory if all of them are large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from client.settings import Personal, PersonalAlone
from client.state.model_parts import kept_values, set_tensors, shapes_of
from client.work.personal import check_layers
from client.work.personal_training import randomness_of, steps_of, train_module
from privacy.codec.update import Layout
from privacy.config import read_mapping, read_toml
from privacy.errors import ConfigError
from simulations.study.scoring import mean_of_sites, score
from simulations.vectorised.kept_vectors import KeptVectors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import nn

    from client.state.personal_models import Values
    from privacy.codec.update import Model
    from simulations.pools import Division
    from simulations.study.checkpoints import Checkpoint
    from simulations.study.simulation import Engine, Played, Simulation

_LISTED = 5  # sites in a message
_KEPT, _TRAINED = "personal", "personal_trained"  # in a checkpoint


def read_personal(given: object) -> Personal | None:
    """Return what sites train for themselves, given it, a mapping like `[personal]`, or the path of a file with it.

    Raises:
        ConfigError: if it does not fit.
    """
    if given is None or isinstance(given, Personal):
        return given
    if isinstance(given, Mapping):
        return read_mapping(given, Personal, "[personal]")
    if isinstance(given, str | Path):
        return read_toml(Path(given), PersonalAlone).personal
    msg = f"personal is a {type(given).__name__}; give Personal(…), a mapping like it, or the path of a site.toml"
    raise ConfigError(msg)


def check_personal(personal: Personal | None, simulation: Simulation, held_out: Division | None) -> None:
    """Check that sites can train what they are to train for themselves.

    Raises:
        ConfigError: if it does not suit the task, or there is nothing to measure it on.
    """
    if personal is None:
        return
    check_layers(personal, simulation.module(), simulation.task_name)
    if held_out is None:
        msg = (
            "personal models are measured on records of their own sites: give test as a fraction, or as a mapping with "
            "the test records of each site by name"
        )
        raise ConfigError(msg)


class SiteModels(Mapping[str, "nn.Module"]):
    """The own models of sites by name, in evaluation mode on the CPU, each made when it is asked for; or of none."""

    def __init__(
        self, simulation: Simulation, engine: Engine, held_out: Division | None, personal: Personal | None
    ) -> None:
        """Begin before the first round.

        Args:
            simulation: of the sites.
            engine: plays it, and knows what stays at sites.
            held_out: records by site, to measure on.
            personal: what sites train; None if they have local parameters, or nothing of their own.
        """
        self._simulation, self._engine, self._personal = simulation, engine, personal
        self._held_out = held_out
        self._shared, self._module = simulation.start(), simulation.module()
        self._made = kept_values(self._module, simulation.task.local)
        self._layout = Layout(shapes_of(self._module) if personal else self._shared.layout.local)
        sites = simulation.sites if personal or simulation.task.local else ()
        self._places = {site: place for place, site in enumerate(sites)}
        self._vectors = KeptVectors(len(self._places), self._layout.size, np.float32)
        self._trained = np.zeros(len(self._places), bool)

    @override
    def __getitem__(self, site: str) -> nn.Module:
        if site not in self._places:
            known = f"{', '.join([*self._places][:_LISTED])}…" if self._places else "none; give personal=…"
            msg = f"no site {site!a} has a model of its own; those that have one: {known}"
            raise KeyError(msg)
        return self._simulation.loaded(self._own(self._places[site], self._shared)).eval()

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    @override
    def __len__(self) -> int:
        return len(self._places)

    def measured(self, model: Model) -> dict[str, float] | None:
        """Return the metrics of a shared model, on each held-out record with what stays at its site; None without such.

        Raises:
            TaskError: if loss or metrics fail.
        """
        if self._held_out is None or not self._shared.layout.local:
            return None
        return mean_of_sites(
            (count, self._score(site, self._with_local(site, model)))
            for site, count in self._held_out.sizes.items()
            if count
        )

    def follow(self, played: Played) -> None:
        """Train Ditto's models at the sites of a round.

        Raises:
            TaskError: if training fails.
        """
        if self._ditto and played.released:
            for place in played.sites.tolist():
                self._train(place, played.number, played.model)

    def finish(self, number: int, model: Model) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Train, or take from the sites, what is still to be after round `number`, the last, and its model.

        Yields:
            Each site, and what both models are worth there: `records` that were held out, and the metrics of the
            `shared` and the `personal` one; None if no record was.

        Raises:
            TaskError: if training fails.
        """
        self._shared = model
        for site, place in self._places.items():
            shared = self._with_local(site, model)
            if self._personal is None:
                self._write(place, shared.local)
            elif not self._ditto:
                self._train(place, number, model)
            elif not self._trained[place]:  # it was in no round
                self._write(place, self._all_of(shared))
            count = len(self._held_out.parts.get(site, ())) if self._held_out else 0
            yield site, {
                "records": count,
                "shared": self._score(site, shared if self._personal else replace(model, local=self._made)),
                "personal": self._score(site, self._own(place, model)),
            } if count else None  # fmt: skip

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is needed to go on, beside `parts`."""
        return {_TRAINED: self._trained} if self._ditto else {}

    @property
    def parts(self) -> dict[str, Iterator[NDArray[np.float32]]]:
        """What is needed to go on, of all sites."""
        return {_KEPT: self._vectors.parts()} if self._ditto else {}

    def restore(self, begun: Checkpoint) -> None:
        """Go on after a round.

        Raises:
            ConfigError: if the checkpoint lacks something.
        """
        if not begun.number or not self._ditto:
            return
        try:
            self._trained[:] = begun.arrays[_TRAINED]
            self._vectors.restore(begun.parts(_KEPT))
        except (KeyError, ValueError) as error:
            raise begun.damaged() from error

    @property
    def _ditto(self) -> bool:
        return self._personal is not None and self._personal.method == "ditto"

    @cached_property
    def _at_sites(self) -> Any:  # noqa: ANN401 - a function from a site's name to its local parameters
        """Read what stays at a site; only while the sites' folders are there."""
        return self._engine.at_sites(self._simulation)

    def _with_local(self, site: str, model: Model) -> Model:
        """Return a shared model with what stays at a site."""
        if not model.layout.local:
            return model
        return replace(model, local=self._at_sites(site) or self._made)

    def _own(self, place: int, model: Model) -> Model:
        """Return the kept model of a site."""
        values = self._layout.unflatten(self._vectors.read(np.array([place]))[0])
        if self._personal is None:
            return replace(model, local=values)
        local = {name: values[name] for name, _ in model.layout.local}
        return replace(model, vector=model.layout.flatten(values), local=local)

    def _write(self, place: int, values: Values) -> None:
        self._vectors.write(np.array([place]), self._layout.flatten(values)[None])

    def _train(self, place: int, number: int, model: Model) -> None:
        """Train a site's personal model on, after a round."""
        simulation, personal = self._simulation, self._personal
        assert personal is not None  # noqa: S101 - otherwise nothing is trained
        site = simulation.sites[place]
        start = self._layout.unflatten(self._vectors.read(np.array([place]))[0]) if self._trained[place] else {}
        values = train_module(
            simulation.task, simulation.task_name, self._loaded(self._with_local(site, model)),
            simulation.records[site].records.to(simulation.device), personal, layout=model.layout,
            steps=steps_of(personal, simulation.settings, site),
            randomness=randomness_of(simulation.settings, site, number), start=start if self._ditto else {},
        )  # fmt: skip
        self._write(place, values)
        self._trained[place] = True

    def _all_of(self, model: Model) -> Values:
        return {**model.layout.unflatten(model.vector), **model.local}

    def _score(self, site: str, model: Model) -> dict[str, float]:
        assert self._held_out is not None  # noqa: S101 - as whoever calls knows
        simulation = self._simulation
        records = self._held_out[site].records.to(simulation.device)
        return score(simulation.task, simulation.task_name, self._loaded(model), records)

    def _loaded(self, model: Model) -> nn.Module:
        """Return the module of all sites with a model in it, on the device that trains."""
        set_tensors(self._module.cpu(), model)
        return self._module.to(self._simulation.device)
