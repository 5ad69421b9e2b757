"""A task tried on a site's own records, which may be unlike any that it makes up. Nothing leaves the site."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch

from client.data.fitness import load_records
from client.dpsgd.additivity import check_mode
from client.dpsgd.dpsgd import way_to_train
from client.state.refusals import Refusals
from client.task.guard import check_records, check_task
from client.task.probe import Example, make_model
from client.task.task import import_task

if TYPE_CHECKING:
    from pathlib import Path

    from client.gradients.choice import Choice
    from client.settings import Computing
    from client.task.task import Records, Task

_FEW = 32  # records of which variations are tried too
_LARGE = 1 << 22  # parameters; from here on, the mode is only tried when it trains


def prove(task: Task, name: str, records: Records, device: torch.device, computing: Computing) -> None:
    """Try a task on a site's records, in an order by chance.

    Plain gradients are looked at on the CPU, of a few and of variations of them; the mode that would train on the
    device, with all for which there is time.

    Args:
        task: of which there is an example.
        name: what it is called.
        records: inputs and targets `(n, ...)`, at least one.
        device: that trains.
        computing: the site's settings of how to compute gradients.

    Raises:
        InteractionError: if records meet.
        TaskError: if the task fails on them, or has no way to compute gradients.
    """
    inputs, targets = records
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(secrets.randbits(62)))
    few = order[:_FEW].to(inputs.device)
    check_records(task, name, Example(inputs[few].cpu(), targets[few].cpu()))
    module = make_model(task, 0)
    if sum(parameter.numel() for parameter in module.parameters()) <= _LARGE:
        module = module.to(device)

        def proof(choice: Choice) -> None:
            check_mode(task, module, (inputs, targets), order, choice, computing.precision)

        way_to_train(task, module, computing, proof)


def prove_all(folder: Path, name: str, file: Path, device: torch.device, computing: Computing) -> int:
    """Try a site's task as its agent would at its start; return how many records there are.

    Args:
        folder: the site's.
        name: the task's.
        file: the records.
        device: that trains.
        computing: the site's settings of how to compute gradients.

    Raises:
        TaskError: if the task cannot be trained, or was refused before.
        DataError: if a record cannot be used.
    """
    task = import_task(name)
    Refusals(folder).check(name, task)
    example = check_task(task, name)
    inputs, targets = load_records(task, name, example, file)
    prove(task, name, (inputs, targets), device, computing)
    return len(inputs)
