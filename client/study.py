"""A task at a site: its model made, its records read once, a round of it trained."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from client.beginning import find_model
from client.dpsgd import train, way_to_train
from client.fitness import load_records
from client.guard import check_task
from client.interactions import InteractionError
from client.proving import prove
from client.records import split_held_out
from client.refusals import Refusals
from client.state import check_constants, layout_of, set_constants, tensors_of
from client.task import import_task
from client.trial import make_model
from privacy.update import Model, Update
from strategies.algorithm import PLAIN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from client.task import Task
    from client.trial import Example
    from client.workplace import Workplace
    from privacy.manifest import Manifest, RunSettings
    from privacy.purposes import Start
    from privacy.randomness import Randomness
    from privacy.update import Layout
    from strategies.algorithm import LocalSolver

Records = tuple["Tensor", "Tensor"]

_TRIED: WeakKeyDictionary[type[Task], Example] = WeakKeyDictionary()


class Study:
    """One task at one site: the counterpart of `Poll`, which asks without training."""

    def __init__(self, name: str, site: Workplace) -> None:
        self.name, self._site = name, site
        self.task: Task = import_task(name)
        self._refusals = Refusals(site.place.folder)
        self._refusals.check(name, self.task)
        self._example = _tried(self.task, name)
        self._layouts: dict[tuple[int, Start | None], Layout] = {}  # of one run, as constants may be large

    def module(self, seed: int) -> nn.Module:
        """Make the untrained module; the same at every site."""
        return make_model(self.task, seed)

    def untrained(self, seed: int) -> Model:
        """Return the untrained model."""
        module = self.module(seed)
        layout = layout_of(module)
        return Model(_drained(module, layout), layout)

    def start(self, settings: RunSettings) -> Model:
        """Return the model that a run starts from: a new one, or one that the site has and the run names.

        Raises:
            RefusedError: if the site does not have it, or it is another task's.
        """
        if settings.start is None:
            return self.untrained(settings.model_seed)
        layout = layout_of(self.module(settings.model_seed))
        return find_model(self._site.place.folder / "models", settings.start.model, layout, self._site.name)

    def layout(self, settings: RunSettings) -> Layout:
        """Names and shapes of what is trained, and the rest of the model, as the run starts with it.

        Raises:
            RefusedError: as `start` does.
        """
        if not self._layout.constants:
            return self._layout
        of = settings.model_seed, settings.start
        if of not in self._layouts:
            made = self.start(settings).layout if settings.start else layout_of(self.module(settings.model_seed))
            self._layouts = {of: made}
        return self._layouts[of]

    @cached_property
    def _layout(self) -> Layout:
        return layout_of(self.module(0))

    def prepare(self, settings: RunSettings) -> None:
        """Find a way to compute gradients, before anything is charged.

        Raises:
            TaskError: if there is none, or the task is refused.
        """
        self._refusals.check(self.name, self.task)
        if settings.training and settings.training.steps_per_round:
            module = self.module(settings.model_seed).to(self._site.device)
            way_to_train(self.task, module, self._site.settings.training)

    def release(self, manifest: Manifest, model: Model, randomness: Randomness, solver: LocalSolver = PLAIN) -> Update:
        """Train for one round, from this model on and as the algorithm says: what changed, `(parameters,)`.

        Raises:
            TaskError: if the task is refused, from now on if need be.
        """
        settings = manifest.settings
        module = self.load_into(self.module(settings.model_seed), model)
        size = settings.cohort.sizes[self._site.name]
        computing, team = self._site.settings.training, self._site.team
        records = self.training
        with self.refusing():
            train(self.task, module, records, size, manifest, randomness, solver=solver, computing=computing, team=team)
        return self.difference(module, model)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Do nothing more than what is done with every model."""

    def load_into(self, module: nn.Module, model: Model) -> nn.Module:
        """Make a new module the model, and move it to the site's device."""
        held = tensors_of(module)
        with torch.no_grad():
            for name, values in model.layout.unflatten(model.vector).items():
                held[name].copy_(torch.from_numpy(np.array(values)))
        set_constants(module, model.layout)
        return module.to(self._site.device)

    @staticmethod
    def difference(module: nn.Module, model: Model) -> Update:
        """Return what training changed, `(parameters,)`. The module is empty afterwards.

        Raises:
            MalformedError: if a value is not finite.
            TaskError: if anything has changed that is not trained.
        """
        check_constants(module, model.layout)
        vector = _drained(module, model.layout)
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
    def read(self) -> tuple[Records, Records]:
        """The records, those to train on and those to evaluate on, as they were read: nothing was tried on them."""
        return self._records

    @cached_property
    def training(self) -> Records:
        """The records that are trained on: inputs and targets `(n, ...)`; the task is tried on a few of them.

        Raises:
            TaskError: if it fails on them, or they meet; then it is refused from now on.
        """
        records, _ = self._records
        if len(records[0]):
            with self.refusing():
                prove(self.task, self.name, records, self._site.device, self._site.settings.training)
        return records

    def check_not_refused(self) -> None:
        """Check that the task is not one that was refused for good.

        Raises:
            TaskError: if it is, and its code is the same.
        """
        self._refusals.check(self.name, self.task)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse the task from now on if records meet in it.

        Raises:
            TaskError: if they do, or did before.
        """
        self.check_not_refused()
        try:
            yield
        except InteractionError as error:
            raise self._refusals.add(self.name, self.task, str(error)) from error

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


def _tried(task: Task, name: str) -> Example:
    """Try a task; once in a process, if nothing tells its instances apart."""
    if vars(task):
        return check_task(task, name)
    if type(task) not in _TRIED:
        _TRIED[type(task)] = check_task(task, name)
    return _TRIED[type(task)]


def _drained(module: nn.Module, layout: Layout) -> NDArray[np.float32]:
    """Return a module's trained parameters, `(size,)`, and leave them empty: both need not fit in memory."""
    vector, start, held = np.empty(layout.size, dtype=np.float32), 0, tensors_of(module)
    for name, _ in layout.shapes:
        parameter = held[name]
        place = slice(start, start := start + parameter.numel())
        vector[place] = parameter.detach().cpu().numpy().reshape(-1)
        parameter.data = parameter.new_empty(0)
    return vector
