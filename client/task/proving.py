"""Try a task on a site's own records, which may differ from those that it makes up. Nothing leaves the site."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch

from client.data.fitness import load_records
from client.data.inputs import move
from client.dpsgd.additivity import check_mode
from client.dpsgd.training_steps import way_to_train
from client.state.refusals import Refusals
from client.task.guard import check_records, check_task
from client.task.probe import Example, make_model
from client.task.task import import_task

if TYPE_CHECKING:
    from pathlib import Path

    from client.data.site_records import Records
    from client.data.sources.registry import Source
    from client.gradients.choice import Choice
    from client.settings import Computing
    from client.task.task import Task

_FEW = 32  # records that are tried with variations too
_LARGE = 1 << 22  # parameters; the mode of a larger model is tried only when it trains


def prove(task: Task, name: str, records: Records, device: torch.device, computing: Computing) -> None:
    """Try a task on a site's records, in random order.

    A few records, and variations of them, are checked with plain gradients on the CPU. Then as many as time allows are
    checked on the device, in the mode that would train.

    Args:
        task: has passed `check_task`.
        name: its name, `module:Class`.
        records: the site's, at least one.
        device: the device that trains.
        computing: the site's settings for computing gradients.

    Raises:
        InteractionError: if records interact.
        TaskError: if the task fails on them, or no mode can compute its gradients.
    """
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(secrets.randbits(62)))
    inputs, targets = records.select(order[:_FEW])
    check_records(task, name, Example(move(inputs, torch.device("cpu")), targets.cpu()))
    module = make_model(task, 0)
    if sum(parameter.numel() for parameter in module.parameters()) <= _LARGE:
        module = module.to(device)

        def proof(choice: Choice) -> None:
            check_mode(task, module, records, order, choice, computing.precision)

        way_to_train(task, module, computing, proof)


def prove_all(folder: Path, name: str, source: Source, device: torch.device, computing: Computing) -> int:
    """Try a site's task as its agent does when it starts; return the number of records.

    Args:
        folder: the site's folder.
        name: the task's name, `module:Class`.
        source: the site's records.
        device: the device that trains.
        computing: the site's settings for computing gradients.

    Raises:
        TaskError: if the task cannot be trained, or was refused before.
        DataError: if a record cannot be used.
    """
    task = import_task(name)
    Refusals(folder).check(name, task)
    example = check_task(task, name)
    records = load_records(task, name, example, source).records
    prove(task, name, records, device, computing)
    return len(records)
