"""Which way a task's gradients are computed, and why.

A mode is taken only if it computes what it should for this very model: the clipped sum over two records must equal what
plain autograd gives, record by record. That finds what no list of layers can: weights used outside their layer, options
of a layer that a mode does not know, layers that mix records. It matters most for `ghost`, which takes norms from one
computation and the sum from another.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from client.gradients.bookkeeping import BookKeeping
from client.gradients.clipping import clip_factors
from client.gradients.layers import unknown
from client.gradients.loss import RecordLoss
from client.gradients.mode import GradientMode, quiet
from client.gradients.opacus_modes import Ghost, Hooks
from client.gradients.optimizer import CipherOptimizer
from client.gradients.vmap import Vmap
from privacy.errors import TaskError
from privacy.randomness import Randomness

if TYPE_CHECKING:
    from client.settings import Computing, Gradients
    from client.task import Task

_TOLERANCE = 1e-2  # of C; what is wrong is wrong by far more, and a GPU may round to 10 bits
_IN_TURN: tuple[Gradients, ...] = ("bookkeeping", "vmap", "ghost", "hooks", "functorch")
_VALUES = 1 << 24  # in memory at once: of gradients, and of what they are made from
_RECORDS = 256  # at once at most


_Single = list[list["Tensor"]]  # every record's gradients, parameter by parameter


@dataclass(frozen=True)
class Choice:
    """A way to compute a task's gradients."""

    gradients: Gradients
    reason: str
    physical_batch: int  # records at a time


def choose(task: Task, model: nn.Module, records: tuple[Tensor, Tensor], computing: Computing) -> Choice:
    """Choose how to compute gradients: as the site's settings say, or what is fastest of what is right.

    Args:
        task: gives the loss.
        model: is not changed.
        records: inputs and targets `(n, ...)`; two of them are looked at.
        computing: the site's settings.

    Raises:
        TaskError: if what the settings say cannot be used for this model, or nothing can.
    """
    two = records[0][:2], records[1][:2]
    # Outside what is tried: an error here is one of the task, not of a way to compute gradients.
    single = _one_by_one(_without_dropout(deepcopy(model)), RecordLoss(task), *two)
    if computing.gradients != "auto":
        tried = _try(computing.gradients, task, model, two, single, computing)
        if isinstance(tried, str):
            msg = (
                f"gradients = {computing.gradients!r} cannot be used for this model: {tried}; "
                'set gradients = "auto" in [training] of site.toml'
            )
            raise TaskError(msg)
        return Choice(computing.gradients, "site.toml says so", tried)
    problems: list[str] = []
    for mode in _IN_TURN:
        tried = _try(mode, task, model, two, single, computing)
        if isinstance(tried, int):
            return Choice(mode, "; ".join(problems) or "every parameter belongs to a layer that it knows", tried)
        problems.append(f"not {mode}: {tried}")
    msg = f"no way to compute this model's gradients record by record: {'; '.join(problems)}"
    raise TaskError(msg)


def make_mode(
    gradients: Gradients, model: nn.Module, loss: RecordLoss, max_grad_norm: float, precision: torch.dtype
) -> GradientMode:
    """Wrap a model in a gradient-sample mode."""
    made: GradientMode
    match gradients:
        case "bookkeeping":
            made = BookKeeping(model, loss, max_grad_norm)
        case "ghost":
            made = Ghost(model, loss, max_grad_norm)
        case "hooks" | "functorch":
            made = Hooks(model, loss, force_functorch=gradients == "functorch")
        case _:
            made = Vmap(model, loss)
    made.precision = precision
    return made


def _try(
    mode: Gradients,
    task: Task,
    model: nn.Module,
    records: tuple[Tensor, Tensor],
    single: _Single,
    computing: Computing,
) -> int | str:
    """Return how many records to compute at a time, or why a mode cannot be used for a model."""
    if mode == "ghost" and computing.precision != "float32":
        return "its second pass would sum other numbers, in bfloat16, than those that it took norms of"
    if mode == "bookkeeping" and (reason := unknown(model)) is not None:
        return reason
    try:
        values = _compare(mode, task, model, records, single)
        if computing.precision == "bfloat16":  # compared in float32; here it only has to work
            again = make_mode(mode, deepcopy(model), RecordLoss(task), 1.0, torch.bfloat16)
            _clipped_sum(again, *records, 1.0)
    except Exception as error:  # noqa: BLE001 - whatever a mode says to a model that is not for it
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    if values is None:
        return "its gradients are not those of autograd, record by record"
    return computing.physical_batch or min(_RECORDS, max(1, _VALUES // max(1, values)))


def _compare(
    mode: Gradients, task: Task, model: nn.Module, records: tuple[Tensor, Tensor], single: _Single
) -> int | None:
    """Return how many values a record takes in memory; None if a mode's sum is not that of autograd."""
    model = _without_dropout(deepcopy(model))
    if mode == "vmap":
        bound = 1.0  # it is autograd's own: it only has to work, also for a model that draws at random
    else:
        norms = [float(torch.cat([each.flatten() for each in gradient]).norm()) for gradient in single]
        bound = min((norm for norm in norms if 0 < norm < float("inf")), default=2.0) / 2
    wrapped = make_mode(mode, model, RecordLoss(task), bound, torch.float32)
    found = _clipped_sum(wrapped, *records, bound)
    if mode == "vmap":
        return wrapped.values_a_record
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for gradient in single:
        squares = torch.stack([each.square().sum() for each in gradient]).sum()
        factor, finite = clip_factors(squares[None], bound)
        if finite:
            expected = [each + factor * part for each, part in zip(expected, gradient, strict=True)]
    apart = sum(float((one - other).square().sum()) for one, other in zip(found, expected, strict=True))
    return wrapped.values_a_record if apart**0.5 <= _TOLERANCE * bound else None


def _one_by_one(model: nn.Module, loss: RecordLoss, inputs: Tensor, targets: Tensor) -> _Single:
    """Return every record's gradients, parameter by parameter, as plain autograd computes them."""
    found: _Single = []
    parameters = list(model.parameters())
    for number in range(len(inputs)):
        outputs = model(inputs[number : number + 1])
        back = loss.gradients(outputs, targets[number : number + 1])
        found.append(list(torch.autograd.grad(outputs, parameters, back, allow_unused=True, materialize_grads=True)))
    return found


def _clipped_sum(mode: GradientMode, inputs: Tensor, targets: Tensor, bound: float) -> list[Tensor]:
    optimizer = CipherOptimizer(
        torch.optim.SGD(mode.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=bound,
        expected_batch_size=1,
        loss_reduction="sum",
        randomness=Randomness.seeded(0),
    )
    with quiet():
        mode.fill(inputs, targets)
    optimizer.clip_and_accumulate()
    optimizer.add_noise()
    return [parameter.grad for parameter in mode.parameters() if parameter.grad is not None]


def _without_dropout(model: nn.Module) -> nn.Module:
    """Take out of a model what draws at random, so that it can be compared."""
    for part in model.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention | nn.RNNBase):
            part.dropout = 0.0
    return model
