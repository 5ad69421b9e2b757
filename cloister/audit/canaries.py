"""Canaries: made-up records that show, from outside, whether DP-SGD matches what the ledger was charged for.

Every canary has its own coordinate of the model, with a raw gradient far beyond the clipping norm. A coin decides
whether it is in the data at all (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). Its coordinate of the trained
model holds its clipped contribution, if it was in, plus noise, and nothing else: ordinary records have no gradient
there, and each record is clipped separately. So the figures do not depend on anybody's records.

In the audited task's own parameters, the contributions of records hide everything else. So canaries have three roles:

- `beside`  the task's records are trained on, and each canary has a gradient in its own coordinate
- `silent`  no record has any gradient: every parameter of the model moves by noise alone
- `loud`    only canaries have gradients, each in its own coordinate and in the task's parameters at once; clipping that
            treats the two parts separately lets a record count too much

`CLOISTER_CANARIES` names a file with the task and records that the canaries join, and the number of canaries:

    {"task": "simulations.tasks.diagnosis:Diagnosis", "file": "/srv/north/patients.csv", "source": null,
     "folder": "/srv/north", "count": 4000}

A site's own data file then lists the canaries that are in at that site, one number from 0 per line.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import Dataset
from typing_extensions import override

from client.data.inputs import Inputs, call, mapped, rows, tensors
from client.data.own_records import check_loaded
from client.data.sources.options import ListedOptions, SourceOptions, TableOptions
from client.data.sources.registry import Source
from client.task.probe import Example
from client.task.task import Task, import_task
from privacy.errors import DataError, TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.data.inputs import Batch

SETUP = "CLOISTER_CANARIES"
"""The environment variable that names the file."""

WEIGHT = "canaries.weight"
"""The name of the tensor with the canaries' coordinates."""

MOST_RECORDS = 500
"""The most records of the audited task to train on: they do not affect the canaries, but take memory in each step."""

Role = Literal["beside", "silent", "loud"]

RAW_GRADIENT = 1e3  # far beyond any clipping norm, so that clipping is tested too


@contextmanager
def set_up(path: Path, task: str, source: Source, count: int) -> Iterator[None]:
    """Have `Canaries` wrap a task with a site's records, within this context."""
    own = {
        "file": str(source.path.resolve()),
        "source": source.options and asdict(source.options),
        "folder": str((source.folder or source.path.parent).resolve()),
    }
    path.write_text(json.dumps({"task": task, **own, "count": count}))
    before = os.environ.get(SETUP)
    os.environ[SETUP] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SETUP]
        else:
            os.environ[SETUP] = before


class Canaries(Task):
    """Another task with canaries beside its records. It notes which canaries are in each step's batch."""

    def __init__(self) -> None:
        if SETUP not in os.environ:
            msg = f"{SETUP} names no file to which canaries could be added; use `cloister audit privacy`"
            raise TaskError(msg)
        setup = json.loads(Path(os.environ[SETUP]).read_text(encoding="utf-8"))
        self.task: Task = import_task(setup["task"])
        self.count: int = setup["count"]
        options = TypeAdapter[TableOptions | ListedOptions | None](SourceOptions | None).validate_json(
            json.dumps(setup.get("source"))
        )
        self._source = Source(Path(setup["file"]), options, Path(setup["folder"]))
        self._batch: set[int] | None = None  # None while nobody watches
        self._outputs = torch.Size()
        self.form: Inputs = torch.empty(0)  # of the task's own inputs, without records
        self.batches: list[set[int]] = []
        self.role: Role = "beside"

    @override
    def model(self) -> nn.Module:
        """Make the other task's model, with a parallel layer that has one coordinate per canary."""
        return _WithCanaries(self)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read the other task's records and append this site's canaries.

        Returns:
            Flattened inputs `(n, …)` with a last column, the canary's number from 1, or 0; and targets `(n, …)`.
        """
        inputs, targets = self._read()
        if not len(targets):
            msg = f"{self._source.path}: it has no records to which canaries could be added; name a file with records"
            raise DataError(msg)
        numbers = [int(line) + 1 for line in path.read_text(encoding="utf-8").split()]
        # Canaries look like the first record, so that any model accepts them; the model's output for them is ignored.
        flat = self._flat(inputs)
        flat = torch.cat([flat, flat[:1].expand(len(numbers), -1)])
        column = torch.tensor([0] * len(targets) + numbers, dtype=torch.float32).unsqueeze(1)
        return torch.cat([flat, column], 1), torch.cat([targets, targets[:1].expand(len(numbers), *targets.shape[1:])])

    def _read(self) -> Batch:
        loaded: Any = self.task.load_from(self._source)
        if isinstance(loaded, tuple | list) and not isinstance(loaded[0], Dataset):
            return rows(loaded[0], slice(MOST_RECORDS)), loaded[1][:MOST_RECORDS]
        records = check_loaded(loaded, type(self.task).__name__, Example.of(self.task), self._source.path).records
        return records.select(torch.arange(min(MOST_RECORDS, len(records))))

    def _flat(self, inputs: Inputs) -> Tensor:
        """Return each record's values, `(n, d)`, and keep their form."""
        self.form = rows(inputs, slice(0))
        return torch.cat([tensor.to(torch.float32).reshape(len(tensor), -1) for tensor in tensors(inputs)], 1)

    def unflattened(self, flat: Tensor) -> Inputs:
        """Return inputs `(n, d)` in the form in which the task's model takes them."""
        parts = iter(flat.split([tensor.shape[1:].numel() for tensor in tensors(self.form)], 1))
        return mapped(lambda form: next(parts).reshape(len(flat), *form.shape[1:]).to(form.dtype), self.form)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss for the role: the task's plus the canaries', zero, or the canaries' on all parameters."""
        own, signal = outputs[:, :-1], outputs[:, -1].mean()
        if self.role == "beside":
            return self.task.loss(own.reshape(len(outputs), *self._outputs), targets) + RAW_GRADIENT * signal
        if self.role == "silent":
            return 0.0 * (own.mean() + signal)
        # Every other output, because the sum of all may be constant, as with probabilities.
        return RAW_GRADIENT * (own[:, ::2].sum(1).mean() + signal)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Return the other task's made-up records, every other one as a canary."""
        inputs, targets = self.task.example()
        numbers = torch.arange(len(targets)).mul(torch.arange(len(targets)) % 2).clamp(max=self.count)
        flat = self._flat(inputs)
        return torch.cat([flat, numbers.unsqueeze(1)], 1), targets

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the canaries of each step, from its first forward pass to the optimiser's step, in `batches`."""

        def close(*_: object) -> None:
            self.batches.append(self._batch or set())
            self._batch = set()

        self._batch = set()
        handle = register_optimizer_step_post_hook(close)
        try:
            yield
        finally:
            handle.remove()
            self._batch = None

    def see(self, numbers: Tensor, outputs: torch.Size) -> None:
        """Note the canaries in a forward pass, and the shape `(…)` of a record's own output."""
        numbers = torch.func.debug_unwrap(numbers)  # of all records, where torch maps over single ones
        if self._batch is not None:
            self._batch |= {int(number) - 1 for number in numbers.flatten().tolist() if number}
        self._outputs = outputs


class _WithCanaries(nn.Module):
    """A task's model and the canaries' layer in parallel; inputs and outputs have a last column for canaries."""

    def __init__(self, watch: Canaries) -> None:
        super().__init__()
        self.model: nn.Module = watch.task.model()
        self.canaries = nn.Linear(watch.count, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        self._watch, self._count = watch, watch.count

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, d + 1)` to the model's flattened outputs and a last column of canaries."""
        numbers = inputs[:, -1:]
        outputs = call(self.model, self._watch.unflattened(inputs[:, :-1]))
        self._watch.see(numbers.detach()[:, 0], outputs.shape[1:])
        flat = outputs.reshape(len(inputs), -1)
        # Unless it is loud, a canary's gradient is in its own coordinate only.
        cut = {"beside": numbers > 0, "silent": numbers >= 0, "loud": numbers == 0}[self._watch.role]
        flat = torch.where(cut, flat.detach(), flat)
        places = torch.arange(1, self._count + 1, device=inputs.device)
        return torch.cat([flat, self.canaries((numbers == places).to(flat.dtype))], 1)
