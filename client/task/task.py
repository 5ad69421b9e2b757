"""The task: the class that a user writes to say what a consortium trains.

    class Diagnosis(Task):
        def model(self):                    return nn.Linear(30, 1)
        def load(self, path):               return inputs, targets          # of one site, from its own file
        def loss(self, outputs, targets):   return F.binary_cross_entropy_with_logits(outputs, targets)
        def metrics(self, outputs, targets): return {"accuracy": ((outputs > 0) == (targets > 0.5)).float()[:, 0]}
        def example(self):                  return torch.randn(4, 30), torch.tensor([[0.0], [1.0], [0.0], [1.0]])

Instead of a method, `metrics = ["accuracy", "auc"]` names metrics that Cloister computes: see `client.task.scoring`.
`subgroups` says for which subgroups it can compute them: see `client.task.subgrouping`.

A run names it as `module:Class`. A site imports it only from its own installed packages, or from a file that it has
beside its `site.toml`, and only if its policy lists that name: code never travels.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from client.task.scoring import NamedMetrics, check_names
from client.task.subgrouping import Subgrouped, check_subgroups
from client.task.user_code import foreign
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from client.data.inputs import Batch, Loaded
    from client.data.sources.registry import Source


class Task(NamedMetrics, Subgrouped, ABC):
    """Model, data, loss and metrics of one federated study. Instances hold no data."""

    local: ClassVar[Sequence[str]] = ()
    """Names of trained parameters that stay at each site, as patterns of `fnmatch`: `("head.*",)`, `("*.norm?.*",)`."""

    local_steps: ClassVar[int] = 0
    """How many of a round's steps, the first ones, train only `local`; the others then train only what is shared."""

    @abstractmethod
    def model(self) -> nn.Module:
        """Make the untrained model. Cloister seeds torch first, so that every site makes the same model.

        Parameters with `requires_grad` are trained. Everything else is frozen, and must be the same at all sites.
        """

    def load(self, path: Path) -> Loaded:
        """Read one site's records from `path`, scaled by constants that do not come from the data.

        Returns:
            Inputs `(n, ...)` and targets `(n, ...)`, one row per record. Inputs may be one tensor, a tuple of tensors,
            or a dict of tensors: the model is called with the tensor, `*tuple` or `**dict`. Or a map-style
            `torch.utils.data.Dataset` of pairs, each one record's inputs and target without the first dimension,
            which are read when they are needed. After either, the persons `(n,)` whom the records are about may
            follow, as whole numbers or texts: then at most `records_per_person` records of each are used.

        Raises:
            DataError: if a record cannot be used; say which line, and how to fix it.
            TaskError: if the task has no such method: only simulations over arrays or tensors do without.
        """
        del path
        msg = (
            f"{type(self).__name__} does not say how a site reads its records: write load(self, path), which returns "
            "inputs and targets"
        )
        raise TaskError(msg)

    def load_from(self, source: Source) -> Loaded:
        """Read one site's records; a task that declares their columns or form reads them through the site's source."""
        return self.load(source.path)

    @abstractmethod
    def example(self) -> Batch:
        """Make up a few records for the checks that precede the first real record: see `client.task.guard`.

        Returns:
            Inputs `(n, ...)` and targets `(n, ...)` of the same form and dtype as `load` returns: at least four
            different records, covering every class and every case that the loss treats separately.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch: a scalar that depends on each record only by its own term."""

    def augment(self, inputs: Any, generator: torch.Generator) -> Any:  # noqa: ANN401 - in the form of the task's inputs
        """Return a random variation of each record, such as a shift, a mirror image, or other noise.

        Sites call it in a run with `augmentation_multiplicity`, and only on records to train on. What it must not do is
        in `client.task.augmentation`.

        Args:
            inputs: records `(n, ...)` in the form of `load`'s, which may be changed in place. A record occurs once for
                each of its copies.
            generator: of the same device; draw from no other.

        Returns:
            Inputs `(n, ...)` of the same form. Each row depends only on the same row and on draws.
        """
        del generator
        return inputs

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return further metrics by name, one value per record `(n,)`; Cloister averages them over all sites."""
        del outputs, targets
        return {}


_INSTALL = (
    "install its package, or put its file beside site.toml (of a run to simulate, beside the run's file or in the "
    "current folder); or correct its name"
)


def import_task(name: str) -> Task:
    """Import `module:Class` and make an instance.

    Raises:
        TaskError: if there is no such module or class, the class is not a `Task`, or a method is missing.
    """
    imported = import_class(name)
    if not issubclass(imported, Task):
        msg = f"{name!r} is not a cloister.Task; derive the class from it"
        raise TaskError(msg)
    if missing := sorted(imported.__abstractmethods__):
        msg = f"the task {name!r} lacks {', '.join(missing)}; write what is missing"
        raise TaskError(msg)
    task = make(imported, name)
    try:
        check_names(task)
        check_subgroups(task)
    except TaskError as error:
        msg = f"{name}: {error}"
        raise TaskError(msg) from error
    return task


C = TypeVar("C")


def make(kind: Callable[[], C], name: str) -> C:
    """Make an instance of the class called `name`.

    Raises:
        TaskError: if that fails.
    """
    try:
        inspect.signature(kind).bind()
    except TypeError as error:  # Python's message holds only names
        msg = f"the task {name!r} cannot be constructed ({error}); make its constructor work without arguments"
        raise TaskError(msg) from error
    with foreign(name, "constructor"):
        return kind()


def import_class(name: str) -> type:
    """Import `module:Class`.

    Raises:
        TaskError: if there is no such module or class.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        msg = f"the task {name!r} is not of the form module:Class; write for example mypackage.scores:Credit"
        raise TaskError(msg)
    with foreign(name, "module"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            msg = f"the task {name!r} cannot be imported here: there is no module {error.name!r}; {_INSTALL}"
            raise TaskError(msg) from error
        imported: object = getattr(module, class_name, None)
    if imported is None:
        where = getattr(module, "__file__", None) or "a folder without __init__.py"
        msg = f"the task {name!r} cannot be imported here: {module_name} ({where}) has no {class_name!r}; {_INSTALL}"
        raise TaskError(msg)
    if not isinstance(imported, type):
        msg = f"{name!r} is not a class; derive one from cloister.Task"
        raise TaskError(msg)
    return imported
