"""Check that a site's own records suit a task, before a round is charged. Only this site sees the result.

    read   `load` returns records in the form of the made-up records: see `client.data.own_records`
    run    the untrained model and the loss accept every record, and the loss is finite
    mean   its label is one that the metrics can mean that the task names: see `client.data.labels`

The model has seed 0, whatever a run says: so taking part reveals one fact about a site's records, the same in all runs
of a task. No gradient is computed, and nothing is kept.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data.decoded import FOLDER, Decoded
from client.data.inputs import Inputs, call, device_of, mapped, move, named, rows, singles
from client.data.labels import LabelCheck
from client.data.own_records import check_loaded
from client.data.sources.listed_files import ImageRecords
from client.data.watching import watched
from client.dpsgd.torchrun import own_place
from client.gradients.loss import RecordLoss
from client.task.probe import Example, one_a_record
from client.task.user_code import foreign, is_memory
from privacy.errors import CloisterError, DataError, TaskError
from privacy.failures import raised, reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from client.data.inputs import Batch
    from client.data.own_records import OwnRecords
    from client.data.site_records import Records
    from client.data.sources.registry import Source
    from client.settings import Data
    from client.task.task import Task

log = logging.getLogger("cloister.agent")

TARGET, COLUMN = "the target", "input column "
_AT_ONCE = 64  # records at a time
_MOST_COLUMNS = 1024  # columns to try one by one


def load_records(task: Task, name: str, example: Example, source: Source, data: Data | None = None) -> OwnRecords:
    """Have a task read a site's records, or find them, if it returns a data set.

    Args:
        task: reads.
        name: its name.
        example: the records that it makes up.
        source: the site's records.
        data: the site's settings for reading.

    Raises:
        DataError: if it cannot, or returns anything else than records.
    """
    path = source.path
    try:
        with foreign(name, f"load() of {path}", DataError):
            loaded: Any = task.load_from(source)
    except DataError as error:
        if is_empty(path):
            msg = f"{path}: the {'folder' if path.is_dir() else 'file'} is empty; name one with records"
            raise DataError(msg) from error
        raise
    if data and data.cache:
        _keep_decoded(loaded, task, name, source, data)
    return check_loaded(loaded, name, example, path, data)


def is_empty(path: Path) -> bool:
    """Return whether a file or folder is there, with nothing in it."""
    try:
        return not any(path.iterdir()) if path.is_dir() else path.is_file() and not path.stat().st_size
    except OSError:
        return False


def _keep_decoded(loaded: object, task: Task, name: str, source: Source, data: Data) -> None:
    """Let a task's images be kept on disk once they are decoded.

    Raises:
        DataError: if the folder for them cannot be used.
    """
    images = loaded[0] if isinstance(loaded, tuple) and loaded else loaded
    if not isinstance(images, ImageRecords) or source.folder is None:
        log.warning("cache = true in [data] of site.toml is for tasks that declare images; %s reads its own", name)
        return
    processes = own_place().size * (1 + data.loader_workers)
    try:
        images.cache = Decoded.open(source.folder, task, images.form, data.cache_mb * 1_000_000, processes)
    except OSError as error:
        msg = f"{source.folder / FOLDER}: {reason(error)}; free this folder, or set cache = false in [data]"
        raise DataError(msg) from error


@dataclass(frozen=True)
class Called:
    """What messages call records and their parts, if a table names them.

    Attributes:
        row: what the source calls a row, such as `line`.
        inputs: the column of each input.
        target: the column of the target; "" if there are several.
    """

    row: str
    inputs: Sequence[str]
    target: str


class Fitness:
    """A task, its untrained model, and the records that it makes up.

    Args:
        task: the task.
        name: its name.
        module: its untrained model.
        quoting: whether messages show the label of a single record.

    Attributes:
        clamped: numbers of checked records whose target is beyond the task's `target_range`.
    """

    def __init__(self, task: Task, name: str, module: nn.Module, *, quoting: bool = False) -> None:
        self._task, self._name, self._module, self._quoting = task, name, module, quoting
        self._example, self._losses = example_of(task), RecordLoss(task)
        self.clamped = list[int]()

    def check(self, records: Records, numbers: Sequence[int], path: Path, called: Called | None = None) -> None:
        """Compute the loss of every record, in batches and separately, and check its label.

        Args:
            records: the site's, on the module's device.
            numbers: the records' numbers, from 1, in the order in which `load` returned them; or those of their rows.
            path: the file of records.
            called: what rows and columns are called; None: the numbers are in the order of `load`.

        Raises:
            DataError: if a record's loss cannot be computed or is not finite, or its label is none that the metrics
                can mean; names the record and the part.
        """
        known = list[NDArray[np.float64]]()
        for start, (inputs, targets) in watched(records, _AT_ONCE, f"checking {self._name}"):
            problem, labels = self._tried(inputs, targets)
            known.append(labels)
            if (problem or self._task.named_metrics) and (row := self._labels.first(labels)) is not None:
                if records.in_memory:
                    known = [self._tried(*batch)[1] for _, batch in records.in_order(_AT_ONCE)]
                wrong = self._labels.sentence(known)
                raise DataError(self._sentence(path, TARGET, numbers[start + row], wrong, called))
            self.clamped += [numbers[start + row] for row in self._labels.clamped(labels)]
            if problem is None:
                continue
            for number, record in enumerate(zip(singles(inputs), targets.split(1), strict=True)):
                if (sentence := self._problem(*record)) is not None:
                    part, place = self._part(*record), numbers[start + number]
                    raise DataError(self._sentence(path, part, place, _of_loss(sentence), called))
            several = f"{numbers[start]} to {numbers[start + len(targets) - 1]}"
            raise DataError(self._sentence(path, "", several, _of_loss(problem), called))

    def check_metrics(self, records: Records, path: Path, names: Collection[str]) -> None:
        """Compute the metrics of every record separately, as an evaluation does.

        Raises:
            DataError: if they cannot be computed.
            TaskError: if one of `names` is missing, or a metric is not one number per record.
        """
        with foreign(self._name, f"metrics() of the records in {path}", DataError), _aside():
            for _, (inputs, targets) in watched(records, _AT_ONCE, f"measuring {self._name}"):
                outputs = call(self._module, inputs)
                for row in range(len(targets)):
                    one = slice(row, row + 1)
                    metrics = one_a_record(self._task.metrics(outputs[one], targets[one]), 1)
                    if missing := set(names) - set(metrics):
                        msg = f"{self._name}: some records lack the metric {min(missing)!r}; return it for all"
                        raise TaskError(msg)

    def _sentence(self, path: Path, part: str, number: object, problem: str, called: Called | None) -> str:
        if called is None:
            what = f"{part} of record {number}" if part else f"records {number}"
            return f"{path}: {self._name} cannot use {what}, in the order in which its load() returns them: {problem}"
        row = f"{called.row} {number}" if part else f"{called.row}s {number}"
        column = called.target if part == TARGET else ""
        if part.startswith(COLUMN):
            column = called.inputs[int(part.removeprefix(COLUMN)) - 1]
        place = f", column `{column}`" if column else f", {part}" if part else ""
        return f"{path}, {row}{place}: {self._name} cannot use it: {problem}"

    def _part(self, inputs: Inputs, targets: Tensor) -> str:
        """Name the part of a record that the loss cannot take: with a made-up part instead, the loss works."""
        made_up = move(rows(self._example[0], slice(1)), device_of(inputs)), self._example[1][:1].to(targets.device)
        if self._problem(inputs, made_up[1]) is None:
            return TARGET
        if self._problem(made_up[0], targets) is not None:
            return "inputs and target"
        for place, mended in _mended(inputs, made_up[0]):
            if self._problem(mended, targets) is None:
                return place
        return "the inputs"

    def _problem(self, inputs: Inputs, targets: Tensor) -> str | None:
        """Return what is wrong with the loss of these records, or None."""
        return self._tried(inputs, targets)[0]

    def _tried(self, inputs: Inputs, targets: Tensor) -> tuple[str | None, NDArray[np.float64]]:
        """Return what is wrong with the loss of these records, or None; and their labels, none if the model fails.

        The loss is computed on the CPU: on a GPU, a label out of range breaks everything after it.
        """
        labels = np.zeros(0)
        try:
            with _aside():
                outputs, targets = call(self._module, inputs).cpu(), targets.cpu()
                with foreign(self._name, "scored() of the records", DataError):
                    labels = self._labels.of(self._task, outputs, targets)
                # A mean over the batch may hide a record that has no loss of its own: `ignore_index`.
                losses = self._task.loss(outputs, targets), self._losses.losses(outputs, targets)
                return None if all(bool(loss.isfinite().all()) for loss in losses) else "is not finite", labels
        except (CloisterError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if is_memory(error):
                raise MemoryError from error
            return f"raises {raised(error, self._name.partition(':')[0])}", labels

    @cached_property
    def _labels(self) -> LabelCheck:
        """What the task's labels are, from the records that it makes up."""
        inputs, targets = self._example
        with _aside():
            device = next(self._module.parameters()).device
            outputs = call(self._module, move(inputs, device)).cpu()
            return LabelCheck.inferred(self._task, outputs, targets.cpu(), quoting=self._quoting)


def _of_loss(problem: str) -> str:
    return f"the loss {problem}; correct the record, or leave it out"


def _mended(inputs: Inputs, made_up: Inputs) -> Iterator[tuple[str, Inputs]]:
    """Yield the names of a record's parts, and the record with that part made up."""
    if not isinstance(inputs, Tensor) or not isinstance(made_up, Tensor):
        for place, part in named(inputs).items():
            yield place, mapped(lambda own, other, part=part: other if own is part else own, inputs, made_up)
        return
    columns = inputs[0].numel() if inputs.dim() == 2 else 0  # noqa: PLR2004 - a table
    for column in range(columns if columns <= _MOST_COLUMNS else 0):
        mended = inputs.clone()
        mended[0, column] = made_up[0, column]
        yield f"{COLUMN}{column + 1}", mended


@contextmanager
def _aside() -> Iterator[None]:
    """Compute without gradients or warnings, and restore torch's generator."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def example_of(task: Task) -> Batch:
    """Return the records that a task makes up; torch's generator does not change."""
    with torch.random.fork_rng(devices=[]):
        made_up = Example.of(task)
    return made_up.inputs, made_up.targets
