"""Choose the mode that computes a task's gradients, and say why.

A mode is chosen only if it agrees with plain autograd, record by record, on this model (see `comparison`). The
comparison finds what no list of layers can: weights used outside their layer, layer options that a mode does not know,
layers that mix records.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import nn

from client.data.inputs import device_of
from client.gradients.bookkeeping import BookKeeping
from client.gradients.comparison import Expected
from client.gradients.layers import unknown
from client.gradients.loss import RecordLoss
from client.gradients.mode import GradientMode, layers_of, trainable
from client.gradients.opacus_modes import Hooks
from client.gradients.single import Single
from client.gradients.vmap import Vmap
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from client.data.inputs import Batch
    from client.settings import Computing, Gradients
    from client.task.task import Task
    from privacy.run.tables import Clipping

_IN_TURN: tuple[Gradients, ...] = ("bookkeeping", "vmap", "hooks", "functorch", "autograd")
_VALUES = 1 << 24  # values in memory at once: gradients, and the tensors from which they are computed
MOST_RECORDS = 512  # records at once, at most, unless the site's settings say how many


@dataclass(frozen=True)
class Choice:
    """A way to compute a task's gradients."""

    gradients: Gradients
    reason: str
    physical_batch: int  # records at a time


def choose(
    task: Task,
    model: nn.Module,
    records: Batch,
    computing: Computing,
    failed: Mapping[Gradients, str] = MappingProxyType({}),
) -> Choice:
    """Choose how to compute gradients: as the site's settings say, or else the fastest mode that is correct.

    Args:
        task: gives the loss.
        model: is not changed.
        records: inputs and targets `(n, ...)`; four of them are used.
        computing: the site's settings.
        failed: modes that failed on other records, with the reason; `auto` skips them.

    Raises:
        TaskError: if the mode in the settings cannot be used for this model, or no mode can.
    """
    if not trainable(model):
        msg = "every parameter of the model is frozen; there is nothing to train"
        raise TaskError(msg)
    device = device_of(records[0])
    with torch.random.fork_rng(
        devices=[device] if device.type == "cuda" else []
    ):  # the comparison draws from a public seed; training must not
        # An error here comes from the task, not from a mode.
        try:
            expected = Expected.of(model, RecordLoss(task, recognise=False), records)
        except Exception as error:
            msg = f"its gradients cannot be computed per record ({_reason(error)}); change the model accordingly"
            raise TaskError(msg) from error
        return _choose(task, model, expected, computing, failed)


def _choose(
    task: Task, model: nn.Module, expected: Expected, computing: Computing, failed: Mapping[Gradients, str]
) -> Choice:
    if computing.gradients != "auto":
        tried = _try(computing.gradients, task, model, expected, computing)
        if isinstance(tried, str):
            msg = (
                f"gradients = {computing.gradients!r} cannot be used for this model: {tried}; "
                'set gradients = "auto" in [training] of site.toml'
            )
            raise TaskError(msg)
        return Choice(computing.gradients, "site.toml says so", tried)
    problems: list[str] = []
    for mode in _IN_TURN:
        tried = failed[mode] if mode in failed else _try(mode, task, model, expected, computing)
        if isinstance(tried, int):
            return Choice(mode, "; ".join(problems) or "it supports all layers with parameters", tried)
        problems.append(f"not {mode}: {tried}")
    msg = f"this model's gradients cannot be computed per record: {'; '.join(problems)}"
    raise TaskError(msg)


def make_mode(
    gradients: Gradients,
    model: nn.Module,
    loss: RecordLoss,
    max_grad_norm: float,
    precision: torch.dtype,
    clipping: Clipping = "flat",
) -> GradientMode:
    """Wrap a model in a gradient-sample mode."""
    mode: GradientMode
    layers = layers_of(model) if clipping == "per_layer" else None
    match gradients:
        case "bookkeeping":
            mode = BookKeeping(model)
        case "hooks" | "functorch":
            mode = Hooks(model, force_functorch=gradients == "functorch")
        case "autograd":
            mode = Single(model)
        case _:
            mode = Vmap(model)
    mode.loss, mode.max_grad_norm, mode.precision, mode.trained = loss, max_grad_norm, precision, trainable(model)
    mode.layers = layers
    return mode


def _try(mode: Gradients, task: Task, model: nn.Module, expected: Expected, computing: Computing) -> int | str:
    """Return how many records to compute at a time, or why a mode cannot be used for a model."""
    if mode == "bookkeeping" and (reason := unknown(model)) is not None:
        return reason
    try:
        values = 0
        for precision in (torch.float32, torch.bfloat16)[: 1 + (computing.precision == "bfloat16")]:
            wrapped = make_mode(mode, expected.copy(model), RecordLoss(task), expected.bound, precision)
            if (wrong := expected.wrong(wrapped)) is not None:
                return f"its per-record gradient of {wrong} differs from autograd's"
            values = wrapped.values_a_record
    except Exception as error:  # noqa: BLE001 - whatever a mode raises for a model that it cannot handle
        return _reason(error)
    return computing.physical_batch or min(MOST_RECORDS, max(1, _VALUES // max(1, values)))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
