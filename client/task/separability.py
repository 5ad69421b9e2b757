"""Check that a loss is the mean of one term per record, and trains the model through its outputs alone.

A sum over the batch, a mean divided by the batch's weights, or pairs of records let one record change the gradients of
others, or change the update by more than the clipping norm. A term on parameters, such as weight decay or FedProx's, is
in no record's gradient: some clipping methods drop it silently, others let it pass unclipped.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from client.data.inputs import copied
from client.task.advice import DERIVATIVE
from client.task.forms import form_of
from client.task.probe import same
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.data.inputs import Inputs
    from client.task.probe import Probe

_RELATIVE, _ABSOLUTE = 1e-4, 1e-6  # relative to the terms; to the outputs


def check_loss(probe: Probe, inputs: Inputs, targets: Tensor) -> None:
    """Refuse a loss unless it is the mean of one term per record, each computed from that record's outputs.

    Raises:
        TaskError: says what is wrong, and how to write the loss.
    """
    outputs = probe.outputs(copied(inputs)).detach()
    if probe.loss(outputs, targets).requires_grad:
        msg = (
            "its loss has a gradient that does not pass through the outputs; leave out terms on parameters (weight "
            "decay, FedProx), and return from the model everything else that the loss needs"
        )
        raise TaskError(msg)
    _check_slope(probe, outputs, targets)
    value = probe.loss(outputs, targets)
    _check_repeats(probe, outputs, targets, value)
    for shift in range(3):
        _check_terms(probe, outputs, targets.roll(shift, 0))
    _check_repeats(probe, outputs, targets, value)


def _check_repeats(probe: Probe, outputs: Tensor, targets: Tensor, value: Tensor) -> None:
    if not same(value, probe.loss(outputs, targets, seed=1)):
        msg = "its loss gives different values for the same outputs; it must not draw at random or remember batches"
        raise TaskError(msg)


def _check_slope(probe: Probe, outputs: Tensor, targets: Tensor) -> None:
    variable = outputs.clone().requires_grad_()
    loss = probe.loss(variable, targets)
    slope = torch.autograd.grad(loss, variable, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        msg = "its loss has no gradient with respect to the outputs; compute it from them with differentiable functions"
        raise TaskError(msg)
    if not (loss.isfinite() and slope.isfinite().all()):
        msg = (
            "its loss or its gradient is not finite on its example; keep logarithms, roots and divisions away from zero"
        )
        raise TaskError(msg)


def _check_terms(probe: Probe, outputs: Tensor, targets: Tensor) -> None:
    """Compare the losses of some batches with the losses of their single records."""
    terms = torch.stack([probe.loss(outputs[row : row + 1], targets[row : row + 1]) for row in range(len(outputs))])
    reach = _ABSOLUTE * (1 + outputs.abs().max())

    for count in (2, 3, len(outputs)):
        loss, own = probe.loss(outputs[:count], targets[:count]), terms[:count]
        bound = _RELATIVE * own.abs().mean() + reach
        if (loss - own.mean()).abs() <= bound:
            continue
        if (loss - own.sum()).abs() <= bound * count:
            msg = "its loss is a sum over the batch; return the mean over its records"
        elif (
            outputs.shape != targets.shape
            and outputs.numel() == targets.numel()
            and _makes_pairs(probe, outputs, targets)
        ):
            msg = (
                f"its loss over a batch is not the mean of its records' own losses: outputs are {form_of(outputs)} and "
                f"targets {form_of(targets)}, of which torch makes all pairs unless the loss gives both one shape, for "
                "example by outputs.view_as(targets)"
            )
        else:
            msg = (
                "its loss over a batch is not the mean of its records' own losses; give each record one term that "
                "depends on no other record, multiply it by that record's own weight, and take the plain mean (no "
                "class weights, ignore_index or mask in the divisor of a mean, no pairs or risk sets, no outputs "
                "broadcast against targets)"
            )
        raise TaskError(msg)


def _makes_pairs(probe: Probe, outputs: Tensor, targets: Tensor) -> bool:
    """Return whether a loss is a mean of terms once outputs have the shape of their targets."""
    if targets.is_floating_point():
        return True
    aligned = outputs.view_as(targets)
    with suppress(TaskError):
        terms = [probe.loss(aligned[row : row + 1], targets[row : row + 1]) for row in range(len(aligned))]
        return bool(torch.isclose(probe.loss(aligned, targets), torch.stack(terms).mean(), _RELATIVE))
    return False


def check_leaves(probe: Probe, outputs: Tensor, loss: Tensor) -> None:
    """Refuse a loss that trains nothing, or anything but the model's own parameters.

    Raises:
        TaskError: names the parameter, if it has a name.
    """
    own = {id(parameter) for parameter in probe.module.parameters()}
    for leaf in _leaves(outputs, loss):
        if id(leaf) not in own:
            name = _name(leaf, probe)
            if name is None and leaf.dim() and len(leaf) == len(outputs):
                msg = (
                    "its model computes gradients with respect to copies of its inputs, which cannot be told from "
                    f"parameters outside it; write {DERIVATIVE}"
                )
                raise TaskError(msg)
            name = name or f"one of shape {tuple(leaf.shape)}"
            msg = (
                f"its outputs or loss depend on a parameter outside the model, {name}, which would be neither "
                "clipped nor shared; make it part of the model (with nn.ModuleList instead of a list), or detach it"
            )
            raise TaskError(msg)
    if next(_leaves(loss), None) is None:
        msg = "its loss does not depend on the model's parameters; leave no_grad and detach out of forward and loss"
        raise TaskError(msg)


def _leaves(*roots: Tensor) -> Iterator[Tensor]:
    """Yield all tensors to which a backward pass from these roots would give a gradient."""
    yield from (root for root in roots if root.is_leaf and root.requires_grad)
    waiting = [root.grad_fn for root in roots]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            yield leaf
        waiting += [following for following, _ in node.next_functions]


def _name(leaf: Tensor, probe: Probe) -> str | None:
    """Return the name under which the task or a layer of the model holds a tensor."""
    for owner, of in [(probe.task, "of the task"), *((layer, "of its model") for layer in probe.module.modules())]:
        for name, held in vars(owner).items():
            parts = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else [held]
            for part in parts:
                if part is leaf:
                    return f"`{name}` {of}"
                if isinstance(part, nn.Module):
                    parameter_name = next(
                        (inner for inner, parameter in part.named_parameters() if parameter is leaf), None
                    )
                    if parameter_name:
                        return f"`{parameter_name}` of `{name}` {of}"
    return None
