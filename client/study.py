"""A task at a site: its model made, its records read once, a round of it trained."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.beginning import find_model
from client.dpsgd import train, way_to_train
from client.fitness import load_records
from client.guard import check_task
from client.records import split_held_out
from client.task import import_task
from client.trial import make_model
from privacy.update import Layout, Model, Update

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from client.task import Task
    from client.workplace import Workplace
    from privacy.manifest import Manifest, RunSettings
    from privacy.randomness import Randomness

Records = tuple["Tensor", "Tensor"]


class Study:
    """One task at one site: the counterpart of `Poll`, which asks without training."""

    def __init__(self, name: str, site: Workplace) -> None:
        self.name, self._site = name, site
        self.task: Task = import_task(name)
        self._example = check_task(self.task, name)

    def module(self, seed: int) -> nn.Module:
        """Make the untrained module; the same at every site."""
        return make_model(self.task, seed)

    def untrained(self, seed: int) -> Model:
        """Return the untrained model's parameters."""
        module = self.module(seed)
        layout = Layout(tuple((name, tuple(tensor.shape)) for name, tensor in module.named_parameters()))
        return Model(_drained(module, layout.size), layout)

    def start(self, settings: RunSettings) -> Model:
        """Return the model that a run starts from: a new one, or one that the site has and the run names.

        Raises:
            RefusedError: if the site does not have it, or it is another task's.
        """
        if settings.start is None:
            return self.untrained(settings.model_seed)
        return find_model(self._site.place.folder / "models", settings.start.model, self._layout, self._site.name)

    def layout(self, settings: RunSettings) -> Layout:
        """Names and shapes of the parameters, whatever the seed."""
        del settings
        return self._layout

    @cached_property
    def _layout(self) -> Layout:
        return self.untrained(0).layout

    def prepare(self, settings: RunSettings) -> None:
        """Find a way to compute gradients, before anything is charged.

        Raises:
            TaskError: if there is none.
        """
        if settings.training and settings.training.steps_per_round:
            module = self.module(settings.model_seed).to(self._site.device)
            way_to_train(self.task, module, self._site.settings.training)

    def release(self, manifest: Manifest, model: Model, randomness: Randomness) -> Update:
        """Train for one round, from this model on: what changed, `(parameters,)`."""
        settings = manifest.settings
        module = self.load_into(self.module(settings.model_seed), model)
        size = settings.cohort.sizes[self._site.name]
        computing, team = self._site.settings.training, self._site.team
        train(self.task, module, self.training, size, manifest, randomness, computing=computing, team=team)
        return self.difference(module, model)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Do nothing more than what is done with every model."""

    def load_into(self, module: nn.Module, model: Model) -> nn.Module:
        """Set a module's parameters and move it to the site's device."""
        with torch.no_grad():
            for parameter, values in zip(
                module.parameters(), model.layout.unflatten(model.vector).values(), strict=True
            ):
                parameter.copy_(torch.from_numpy(np.array(values)))
        return module.to(self._site.device)

    @staticmethod
    def difference(module: nn.Module, model: Model) -> Update:
        """Return what training changed, `(parameters,)`. The module is empty afterwards.

        Raises:
            MalformedError: if a value is not finite.
        """
        vector = _drained(module, model.layout.size)
        vector -= model.vector
        return Update(vector)

    @cached_property
    def _records(self) -> tuple[Records, Records]:
        data = self._site.settings.data
        path = self._site.place.path(data.file)
        inputs, targets = load_records(self.task, self.name, self._example, path)
        used, kept = (torch.from_numpy(part) for part in split_held_out(len(inputs), data.held_out))
        device = self._site.device
        return (
            (inputs[used].to(device), targets[used].to(device)),
            (inputs[kept].to(device), targets[kept].to(device)),
        )

    @cached_property
    def metrics(self) -> frozenset[str]:
        """Names of the task's metrics."""
        with torch.no_grad():
            outputs = self.module(0)(self._example.inputs)
            return frozenset(self.task.metrics(outputs, self._example.targets))

    @property
    def training(self) -> Records:
        """The records that are trained on: inputs and targets `(n, ...)`."""
        return self._records[0]

    def digest(self) -> bytes:
        """Return a digest of the records that are trained on."""
        found = sha256()
        for part in self.training:
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            found.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        return found.digest()

    @property
    def held_out(self) -> Records:
        """The records that are only evaluated on."""
        return self._records[1]


def _drained(module: nn.Module, size: int) -> NDArray[np.float32]:
    """Return a module's parameters, `(size,)`, and leave it empty: both need not fit in memory."""
    vector, start = np.empty(size, dtype=np.float32), 0
    for parameter in module.parameters():
        place = slice(start, start := start + parameter.numel())
        vector[place] = parameter.detach().cpu().numpy().reshape(-1)
        parameter.data = parameter.new_empty(0)
    return vector
