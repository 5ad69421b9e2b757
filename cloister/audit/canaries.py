"""Canaries: made-up records that tell, from the outside, whether DP-SGD does what the ledger says that it cost.

Every canary has a coordinate of the model to itself, and a raw gradient there that is far beyond the clipping norm.
A coin decides whether it is in the data at all (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). In its coordinate
of the trained model stands what it was let to contribute, if it was in, plus noise. Nothing else does: ordinary records
have no gradient there, and each record is clipped by itself, so that the figures do not depend on anybody's records.

What stands in the other task's own parameters is hidden by what records do there. So canaries have three roles:

- `beside`  the other task's records are trained on, and a canary speaks in its own coordinate
- `silent`  no record has any gradient: every parameter of the model moves by noise alone
- `loud`    only canaries have gradients, each in its own coordinate and in the other task's parameters at once, so that
            whoever clips one part of a model without the other lets a record count too much

`CLOISTER_CANARIES` names a file that says whose model and records the canaries join, and how many there are:

    {"task": "simulations.tasks.diagnosis:Diagnosis", "file": "/srv/north/patients.csv", "count": 4000}

A site's own data file then lists the canaries that are in at that site, one number from 0 a line.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from typing_extensions import override

from client.task.task import Task, import_task
from privacy.errors import DataError, TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

SETUP = "CLOISTER_CANARIES"
"""The environment variable that names the file."""

WEIGHT = "canaries.weight"
"""What the canaries' coordinates are called in the model."""

MOST_RECORDS = 500
"""So many of the other task's records are trained on: the canaries do not notice them, but a step's memory does."""

Role = Literal["beside", "silent", "loud"]

RAW_GRADIENT = 1e3  # far beyond any clipping norm, so that clipping is tested too


@contextmanager
def set_up(path: Path, task: str, file: Path, count: int) -> Iterator[None]:
    """Let `Canaries` stand for a task whose records lie in `file`, as long as this lasts."""
    path.write_text(json.dumps({"task": task, "file": str(file), "count": count}))
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
    """Another task with canaries beside its records. It notes which of them are in each step's batch."""

    def __init__(self) -> None:
        if SETUP not in os.environ:
            msg = f"{SETUP} names no file, so there is nothing for canaries to join; use `cloister audit privacy`"
            raise TaskError(msg)
        setup = json.loads(Path(os.environ[SETUP]).read_text(encoding="utf-8"))
        self.task: Task = import_task(setup["task"])
        self.count: int = setup["count"]
        self._file = Path(setup["file"])
        self._batch: set[int] | None = None  # while nobody watches: a task keeps nothing of a batch
        self._outputs = torch.Size()
        self.shape: tuple[torch.Size, torch.dtype] = torch.Size(), torch.float32
        self.batches: list[set[int]] = []
        self.role: Role = "beside"

    @override
    def model(self) -> nn.Module:
        """Make the other task's model, with one more layer beside it: a coordinate a canary."""
        return _Beside(self)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read the other task's records and put the canaries of this site behind them.

        Returns:
            Inputs `(n, …)` laid flat, with a last column: the canary's number from 1, or 0. Targets `(n, …)`.
        """
        inputs, targets = (part[:MOST_RECORDS] for part in self.task.load(self._file))
        if not len(inputs):
            msg = f"{self._file}: there is no record for canaries to join; name a file with records"
            raise DataError(msg)
        self.shape = inputs.shape[1:], inputs.dtype
        numbers = [int(line) + 1 for line in path.read_text(encoding="utf-8").split()]
        # Canaries look like the first record, so that any model can take them; what it makes of them has no effect.
        flat = inputs.to(torch.float32).reshape(len(inputs), -1)
        flat = torch.cat([flat, flat[:1].expand(len(numbers), -1)])
        column = torch.tensor([0] * len(inputs) + numbers, dtype=torch.float32).unsqueeze(1)
        return torch.cat([flat, column], 1), torch.cat([targets, targets[:1].expand(len(numbers), *targets.shape[1:])])

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the other task's mean loss, plus the mean of what canaries say. Only `beside` is there such a loss."""
        own, said = outputs[:, :-1], outputs[:, -1].mean()
        if self.role == "beside":
            return self.task.loss(own.reshape(len(outputs), *self._outputs), targets) + RAW_GRADIENT * said
        if self.role == "silent":
            return 0.0 * (own.mean() + said)
        # Every other output: the sum of all may be the same whatever the parameters, as that of probabilities is.
        return RAW_GRADIENT * (own[:, ::2].sum(1).mean() + said)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Return the other task's made-up records, every other one as a canary."""
        inputs, targets = self.task.example()
        self.shape = inputs.shape[1:], inputs.dtype
        numbers = torch.arange(len(inputs)).mul(torch.arange(len(inputs)) % 2).clamp(max=self.count)
        flat = inputs.to(torch.float32).reshape(len(inputs), -1)
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
        """Note which canaries a forward pass is about, and the form `(…)` of a record's own output."""
        numbers = torch.func.debug_unwrap(numbers)  # those of all records, where torch maps over single ones
        if self._batch is not None:
            self._batch |= {int(number) - 1 for number in numbers.flatten().tolist() if number}
        self._outputs = outputs


class _Beside(nn.Module):
    """A task's model and the canaries' layer: inputs with a column of numbers to outputs with a column of canaries."""

    def __init__(self, watch: Canaries) -> None:
        super().__init__()
        self.model: nn.Module = watch.task.model()
        self.canaries = nn.Linear(watch.count, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        self._watch, self._count = watch, watch.count

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, d + 1)` to the model's outputs, laid flat, and a last column of canaries."""
        form, kind = self._watch.shape
        numbers = inputs[:, -1:]
        outputs = self.model(inputs[:, :-1].reshape(len(inputs), *form).to(kind))
        self._watch.see(numbers.detach()[:, 0], outputs.shape[1:])
        flat = outputs.reshape(len(inputs), -1)
        # Unless it is loud, a canary's gradient is in its own coordinate only.
        cut = {"beside": numbers > 0, "silent": numbers >= 0, "loud": numbers == 0}[self._watch.role]
        flat = torch.where(cut, flat.detach(), flat)
        each = torch.arange(1, self._count + 1, device=inputs.device)
        return torch.cat([flat, self.canaries((numbers == each).to(flat.dtype))], 1)
