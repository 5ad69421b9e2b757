"""A task at a site, in runs that train: make its model, read its records once, train a round."""

from __future__ import annotations

import math
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from client.data.fitness import Fitness, example_of
from client.data.inputs import call, tensors
from client.data.site_records import InMemory
from client.dpsgd.training_steps import train, way_to_train
from client.state.initial_model import find_model
from client.state.local_parameters import FOLDER
from client.state.model_parts import check_constants, drained, kept_values, layout_of, set_tensors
from client.state.refusals import Refusals
from client.task.augmentation import check_asked
from client.task.guard import check_task
from client.task.interactions import InteractionError
from client.task.probe import make_model, one_a_record
from client.task.proving import prove
from client.task.scoring import prediction_of
from client.task.task import import_task
from client.task.user_code import foreign, is_memory
from client.work.personal import check_local
from client.work.scored import Scores
from privacy.codec.update import Model, Update
from privacy.errors import RefusedError, TaskError
from privacy.noise.randomness import Randomness
from strategies.algorithm import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from torch import Tensor, nn

    from client.context import SiteContext
    from client.data.own_records import Side
    from client.data.site_records import Records
    from client.dpsgd.kept_steps import StepsFile
    from client.task.probe import Example
    from client.task.task import Task
    from privacy.analytics.scores import Prediction
    from privacy.codec.update import Layout
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings
    from strategies.algorithm import LocalSolver

_SOME = 256  # records of a data set whose digest tells it from another
_MOST_RECORDS = 4096  # held-out records to measure, so that it takes less time than training
_BATCH = 256  # records at a time, unless `physical_batch` says otherwise
_TRIED: WeakKeyDictionary[type[Task], Example] = WeakKeyDictionary()


class Study:
    """One task at one site, in runs that train."""

    def __init__(self, name: str, site: SiteContext) -> None:
        self.name, self._site = name, site
        self.task: Task = import_task(name)
        self._refusals = Refusals(site.place.folder)
        self._refusals.check(name, self.task)
        self._example = _tried(self.task, name)
        self._usable = self._fits = False  # whether the task can use every record, and a step fits in memory
        self._layouts: dict[tuple[int, object], Layout] = {}  # of one run only, as constants may be large

    def module(self, seed: int) -> nn.Module:
        """Make the untrained module, which is the same at every site."""
        return make_model(self.task, seed)

    def untrained(self, seed: int) -> Model:
        """Return the untrained model."""
        module = self.module(seed)
        layout = layout_of(module, self.task.local)
        return Model(drained(module, layout), layout)

    def start(self, settings: RunSettings) -> Model:
        """Return the model from which a run starts: an untrained one, or the site's copy of the one that the run names.

        Raises:
            RefusedError: if the site lacks it, or it belongs to another task.
        """
        if settings.start is None:
            return self.untrained(settings.model_seed)
        untrained = self.untrained(settings.model_seed)
        model = find_model(self._site.place.folder / "models", settings.start.model, untrained, self._site.name)
        return replace(model, local=self._site.own_parameters.load(model.run, model.layout.local) or {})

    def layout(self, settings: RunSettings) -> Layout:
        """Return the names and shapes of trained parameters, and the constants with which the run starts.

        Raises:
            RefusedError: as `start` does.
        """
        if self._unvarying:
            return self._unvarying
        of = settings.model_seed, settings.start
        if of not in self._layouts:
            self._layouts = {of: self.start(settings).layout}
        return self._layouts[of]

    @cached_property
    def _unvarying(self) -> Layout | None:
        """The layout, unless it has constants: these depend on the run."""
        layout = layout_of(self.module(0), self.task.local)
        return None if layout.constants else layout

    def prepare(self, settings: RunSettings) -> None:
        """Choose the mode that computes gradients, before anything is charged.

        Raises:
            TaskError: if no mode works, or the task is refused.
        """
        self._refusals.check(self.name, self.task)
        check_asked(self.task, self.name, settings)
        if settings.takes_steps:
            module = self.module(settings.model_seed).to(self._site.device)
            way_to_train(self.task, module, self._site.settings.training)

    def count(self) -> int:
        """Return the number of records to train on, having checked that the task can use each of them."""
        self.check_usable()
        return len(self.training)

    def check_records(self, settings: RunSettings) -> None:
        """Check, once per process, that there are records to train on, and that the task can use each of them."""
        self.check_not_refused()
        check_local(self.task, self.name, settings, self._site.name)
        self._site.check_count(len(self.read[0]), "to train on")
        self.check_usable()
        if settings.takes_steps:
            _ = self.training  # also tries the task on some records, now that each is known to be usable

    def check_usable(self) -> None:
        """Check, once per process, that the task can use every record.

        Raises:
            DataError: names the record that it cannot use.
        """
        if self._usable:
            return
        training, held_out = self.read
        fitness, path = Fitness(self.task, self.name, self.module(0).to(self._site.device)), self._site.records_path
        for records, side in zip((training, held_out), self._sides, strict=True):
            fitness.check(records, side.numbers.tolist(), path)
        self._usable = True

    def check_metrics(self, names: Collection[str]) -> None:
        """Check that these metrics can be computed for every held-out record.

        Raises:
            DataError: if they cannot.
            TaskError: if a metric is missing, or is not one number per record.
        """
        _, held_out = self.read
        fitness = Fitness(self.task, self.name, self.module(0).to(self._site.device))
        fitness.check_metrics(held_out, self._site.records_path, names)

    def check_memory(self, manifest: Manifest) -> None:
        """Train one step on a physical batch of made-up records, once per process.

        Raises:
            RefusedError: if that does not fit in memory.
            TaskError: if no mode can compute the task's gradients.
        """
        training, computing = manifest.settings.training, self._site.settings.training
        if self._fits or training is None or not manifest.settings.takes_steps:
            return
        try:
            with foreign(self.name, "gradients", TaskError), torch.random.fork_rng(devices=[]):
                module = self.module(manifest.settings.model_seed).to(self._site.device)
                size = min(way_to_train(self.task, module, computing).physical_batch, len(self.training))
                made_up = InMemory(*example_of(self.task))
                records = made_up.subset(torch.arange(size) % len(made_up)).to(self._site.device)
                step = replace(training, steps_per_round=1, epochs_per_round=None, sample_rate=1.0)
                once = replace(manifest, settings=replace(manifest.settings, training=step))
                with self.refusing():
                    chance = Randomness.fresh()
                    train(self.task, module, records, size, once, chance, computing=computing)
        except TaskError as error:
            if error.__cause__ is None or not is_memory(error.__cause__):
                raise
            msg = (
                f"{self._site.name} cannot train {self.name}: a step needs more memory than is left; set a smaller "
                "physical_batch in [training] of its site.toml, or use a larger machine"
            )
            raise RefusedError(msg) from error
        self._fits = True

    def files(self, settings: RunSettings, layout: Layout) -> dict[Path, int]:
        """Return the size of the copies of the model that the outbox keeps, and of the site's own parameters."""
        copies = (
            not settings.shares_noise,  # the residual
            settings.kind.mean is not None,  # the last model, besides the mean
            settings.vote is not None,  # the model before, where a hard link is not possible
        )
        needed = {self._site.place.folder / "outbox": 4 * layout.size * sum(copies)}
        if layout.local:
            needed[self._site.place.folder / FOLDER] = 4 * sum(math.prod(shape) for _, shape in layout.local)
        return needed

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness,
                solver: LocalSolver = PLAIN, *, file: StepsFile | None = None) -> Update:  # fmt: skip
        """Train for one round from this model, as the algorithm says; `file` keeps steps.

        Returns:
            The change of what is shared, `(parameters,)`, and the parameters that stay here, after training.

        Raises:
            TaskError: if the task was refused before, or is refused from now on.
        """
        settings = manifest.settings
        module = self.load_into(self.module(settings.model_seed), model)
        size = settings.cohort.sizes[self._site.name]
        computing, group = self._site.settings.training, self._site.group
        if settings.takes_steps:
            records = self.training
            with self.refusing():
                train(
                    self.task, module, records, size, manifest, randomness,
                    number=number, solver=solver, computing=computing, group=group, file=file,
                )  # fmt: skip
        own = kept_values(module, self.task.local)
        return replace(self.difference(module, model), local=own)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Do nothing: a site keeps every run's model anyway."""

    def measure(self, settings: RunSettings, model: Model) -> tuple[int, dict[str, float]]:
        """Return the number of held-out records used, evenly spaced, their mean loss and metrics, and named metrics."""
        if not settings.takes_steps:
            return 0, {}
        held_out = self.held_out
        step = max(1, math.ceil(len(held_out) / _MOST_RECORDS))
        records = held_out.subset(torch.arange(0, len(held_out), step)) if step > 1 else held_out
        scores = Scores(self.task)
        means = self._means(settings, model, records, scores.beside(self._losses_and_metrics))
        named = scores.numbers(self.prediction) if self.prediction else {}
        return len(records), means | named | means  # of two with one name, the task's own method counts

    def mean_loss(self, settings: RunSettings, model: Model) -> float:
        """Return a model's mean loss over all held-out records; there must be at least one."""
        return self._means(settings, model, self.held_out, self._losses)["loss"]

    def _means(
        self,
        settings: RunSettings,
        model: Model,
        records: Records,
        measure: Callable[[Tensor, Tensor], dict[str, float]],
    ) -> dict[str, float]:
        """Return means over records; `measure` returns sums over a batch, given outputs and targets."""
        sums = defaultdict[str, float](float)
        if not len(records):
            return {}
        module = self.load_into(self.module(settings.model_seed), model)
        module.eval()
        with torch.no_grad():
            for _, (inputs, targets) in records.in_order(self.at_once):
                with foreign(self.name, "loss() or metrics() of held-out records"):
                    values = measure(call(module, inputs), targets)
                for name, value in values.items():
                    sums[name] += value
        return {name: value / len(records) for name, value in sums.items()}

    @property
    def at_once(self) -> int:
        """The number of held-out records computed at a time."""
        return self._site.settings.training.physical_batch or _BATCH

    def _losses(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"loss": float(self.task.loss(outputs, targets)) * len(targets)}

    def _losses_and_metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        losses = self._losses(outputs, targets)
        metrics = one_a_record(self.task.metrics(outputs, targets), len(targets))
        return losses | {name: float(metric.sum()) for name, metric in metrics.items()}

    def load_into(self, module: nn.Module, model: Model) -> nn.Module:
        """Load a model, with the site's own parameters if it has them, into a new module on the site's device."""
        set_tensors(module, model)
        return module.to(self._site.device)

    @staticmethod
    def difference(module: nn.Module, model: Model) -> Update:
        """Return the trained module's parameters minus the model's, `(parameters,)`. This empties the module.

        Raises:
            MalformedError: if a value is not finite.
            TaskError: if a constant has changed.
        """
        check_constants(module, model.layout)
        vector = drained(module, model.layout)
        vector -= model.vector
        return Update(vector)

    @cached_property
    def _records(self) -> tuple[Records, Records]:
        used, kept = self._sides
        return used.records, kept.records

    @cached_property
    def _sides(self) -> tuple[Side, Side]:
        own = self._site.load(self.task, self.name, self._example)
        return own.divided(self._site.settings.data, self._site.device)

    @cached_property
    def metrics(self) -> frozenset[str]:
        """The names of the task's metrics."""
        with torch.no_grad():
            outputs = call(self.module(0), self._example.inputs)
            return frozenset(self.task.metrics(outputs, self._example.targets))

    @cached_property
    def prediction(self) -> Prediction | None:
        """What the task predicts, if it names metrics."""
        if not self.task.named_metrics:
            return None
        with torch.no_grad():
            return prediction_of(self.task, call(self.module(0), self._example.inputs), self._example.targets)

    @property
    def read(self) -> tuple[Records, Records]:
        """The records to train on and to evaluate on, as they were read; the task has not been tried on them."""
        return self._records

    @cached_property
    def training(self) -> Records:
        """The records to train on; the first access tries the task on some of them.

        Raises:
            TaskError: if the task fails on them; or if they interact, and the task is refused from now on.
        """
        records, _ = self._records
        if len(records):
            with self.refusing():
                prove(self.task, self.name, records, self._site.device, self._site.settings.training)
        return records

    def check_not_refused(self) -> None:
        """Check that the task has not been refused permanently.

        Raises:
            TaskError: if it has, and its code is unchanged.
        """
        self._refusals.check(self.name, self.task)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse the task from now on if records interact in it.

        Raises:
            TaskError: if they do, or did before.
        """
        self.check_not_refused()
        try:
            yield
        except InteractionError as error:
            raise self._refusals.add(self.name, self.task, str(error)) from error

    def digest(self) -> bytes:
        """Return a digest of the records to train on: of all, or of some if they are read when needed."""
        records, digest = self.training, sha256()
        if records.in_memory:
            inputs, targets = records.whole()
        else:
            digest.update(f"{len(records)} ".encode())
            inputs, targets = records.select(torch.arange(0, len(records), max(1, len(records) // _SOME)))
        for part in (*tensors(inputs), targets):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.digest()

    @property
    def held_out(self) -> Records:
        """The records that are only used for evaluation."""
        return self._records[1]


def _tried(task: Task, name: str) -> Example:
    """Check a task; once per process, if its instances have no attributes."""
    if vars(task):
        return check_task(task, name)
    if type(task) not in _TRIED:
        _TRIED[type(task)] = check_task(task, name)
    return _TRIED[type(task)]
