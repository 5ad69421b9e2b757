"""Measure a model on records that no site trains on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from client.data.inputs import call
from client.task.probe import one_a_record
from client.task.scoring import prediction_of
from client.task.user_code import foreign
from client.work.scored import Scores
from privacy.errors import TaskError
from simulations.study.columns import NOT_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor, nn

    from client.data.site_records import Records
    from client.task.probe import Example
    from client.task.task import Task

_AT_ONCE = 1024


def score(task: Task, name: str, module: nn.Module, records: Records) -> dict[str, float]:
    """Return the mean loss and metrics of a model, and the metrics that the task names.

    Args:
        task: gives loss and metrics.
        name: its name, for messages.
        module: the model, on the device of the records.
        records: at least one.

    Raises:
        TaskError: if loss or metrics fail.
    """
    scores, sums = Scores(task), dict[str, float]()
    outputs = torch.empty(0)
    module.eval()
    with torch.no_grad(), foreign(name, "loss() or metrics() of test records"):
        for _, (inputs, targets) in records.in_order(_AT_ONCE):
            outputs = call(module, inputs)
            for metric, value in _of_batch(task, outputs, targets).items():
                sums[metric] = sums.get(metric, 0.0) + value
            scores.add(outputs, targets)
    means = {metric: value / len(records) for metric, value in sums.items()}
    if not task.named_metrics:
        return means
    *_, (_, targets) = (batch for _, batch in records.in_order(_AT_ONCE))
    return means | scores.numbers(prediction_of(task, outputs, targets)) | means


def check_names(task: Task, name: str, module: nn.Module, example: Example) -> None:
    """Check, on the records that a task makes up, that no metric has the name of another column of rounds.

    Raises:
        TaskError: if one has, or the metrics fail.
    """
    with torch.no_grad(), foreign(name, "metrics()"):
        metrics = task.metrics(call(module.eval(), example.inputs), example.targets)
    if taken := sorted({"loss", *NOT_METRICS} & {*metrics, *task.named_metrics}):
        msg = f"{name}: its metric {taken[0]!r} has the name of another column of a simulation's rounds; rename it"
        raise TaskError(msg)


def _of_batch(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    metrics = one_a_record(task.metrics(outputs, targets), len(targets))
    loss = float(task.loss(outputs, targets)) * len(targets)
    return {"loss": loss} | {name: float(metric.sum()) for name, metric in metrics.items()}


def mean_of_sites(sites: Iterable[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return means over all records of sites, given how many records each has, and its means.

    A metric counts at the sites where it is defined.

    >>> mean_of_sites([(3, {"loss": 1.0}), (1, {"loss": 2.0}), (9, {"loss": math.nan})])
    {'loss': 1.25}
    """
    sums, counts = dict[str, float](), dict[str, int]()
    for count, means in sites:
        for name, value in means.items():
            known = not math.isnan(value)
            sums[name] = sums.get(name, 0.0) + (count * value if known else 0.0)
            counts[name] = counts.get(name, 0) + count * known
    return {name: value / counts[name] if counts[name] else math.nan for name, value in sums.items()}
