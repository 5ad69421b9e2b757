"""Guard: refuse a task that breaks differential privacy before any record is read, and say how to fix it.

The guarantee of DP-SGD rests on one fact: a record influences an update only through its own gradient, which is
clipped. A task can break that by mistake. The guard does not trust layer names. It runs the task on records that the
task makes up, and checks that

    1. the example  has several different records in the form that the task reads
    2. the model    is the same each time it is made
    3. records      do not affect each other, and their place in the batch does not matter: `client.task.independence`
    4. state        outside the model is not trained, and no batch leaves a trace: `client.task.traces`
    5. the loss     is the mean of one term per record, computed from outputs alone: `client.task.separability`
    6. gradients    of a record do not depend on other records, in the backward pass either: `client.task.interactions`
    7. augmentation, if the task has any, varies each record by itself: `client.task.augmentation`

Checks 3, 5 and 6 run twice: with the initial weights and with perturbed ones, since weights initialised to zero can
hide what a layer does. The guard catches mistakes. Only the site's policy keeps out a malicious task, which could read
the records.
"""

from __future__ import annotations

import fnmatch
import time
import warnings
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING
from weakref import ref

import torch
from torch import nn

from client.data.inputs import copied, mapped
from client.dpsgd.torch_draws import forked, seed_cpu
from client.state.model_parts import DTYPES, shared, tensors_of, trained
from client.task.augmentation import check_augmentation
from client.task.independence import REMEMBERS, check_chance, check_independence, check_place
from client.task.interactions import check_gradients
from client.task.probe import OWN, Example, Probe, make_model, same
from client.task.scoring import prediction_of
from client.task.separability import check_leaves, check_loss
from client.task.traces import check_traces
from privacy.errors import CloisterError, TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from client.data.inputs import Inputs
    from client.task.task import Task


_ANOTHER = "its model() makes a different model each time; draw the initial weights only from torch's default generator"
_SECONDS, _BRIEFLY = 0.5, 0.1  # seconds of optional gradient checks: per set of weights; on a site's own records
_Marks = dict[str, tuple[torch.Size, bool, int]]


def check_task(task: Task, name: str) -> Example:
    """Refuse a task that DP-SGD cannot protect.

    Torch's generator and all gradients are left as they were.

    Returns:
        The records that the task made up. Records that it reads must have the same form.

    Raises:
        TaskError: with one sentence that says what to change.
    """
    with _naming(name):
        example = Example.of(task)
        _check(task, example)
    return example


def check_records(task: Task, name: str, records: Example) -> None:
    """Refuse a task that fails on a site's own records, or in which their gradients interact. Takes little time.

    Raises:
        InteractionError: if gradients interact.
        TaskError: if the task fails.
    """
    with _naming(name):
        probe = Probe(task, make_model(task, 0), OWN)
        check_gradients(probe, records, _BRIEFLY)
        check_traces(probe, records.inputs, records.targets)
        check_augmentation(probe, records, _BRIEFLY)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Restore torch's state, and begin error messages with the task's name."""
    try:
        with forked(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the guard tests what torch warns about
            yield
    except TaskError as error:
        msg = f"{name}: {error}"
        raise type(error)(msg) from error


def _check(task: Task, example: Example) -> None:
    inputs, targets = example.batch()
    module, marks = _make_and_check(task, inputs)
    probe = Probe(task, module)
    check_independence(probe, inputs)
    check_chance(probe, inputs)
    check_place(probe, inputs)
    _check_shared(probe.module)
    _check_state(probe, marks, inputs, targets)
    check_loss(probe, inputs, targets)
    check_traces(probe, inputs, targets)
    try:
        check_gradients(probe, example, _SECONDS)
    except TaskError:
        _shake(probe.module)
        check_independence(probe, inputs)  # it names the layer, unless zero weights hide it
        raise
    _shake(probe.module)
    check_augmentation(probe, example, 0.0)
    check_independence(probe, inputs)
    check_chance(probe, inputs)
    check_place(probe, inputs)
    check_loss(probe, inputs, targets)
    start = time.thread_time()
    check_gradients(probe, example, _SECONDS)
    for factor in (8.0, 1 / 64):
        if time.thread_time() - start < 2 * _SECONDS:  # skipped for large models, which take longer
            _scale(probe.module, factor)
            check_gradients(probe, example, 0.0)
    with torch.no_grad():
        probe.metrics(outputs := probe.outputs(inputs), targets)
        _check_scored(probe, outputs, targets)


def _check_scored(probe: Probe, outputs: Tensor, targets: Tensor) -> None:
    """Try the scores of the metrics that the task names.

    Raises:
        TaskError: if they fail, or are not what the metrics need.
    """
    if not probe.task.named_metrics:
        return
    try:
        prediction_of(probe.task, outputs, targets)
    except CloisterError:
        raise
    except BaseException:
        with probe.naming("scored()", len(outputs)):
            raise


def _make_and_check(task: Task, inputs: Inputs) -> tuple[nn.Module, _Marks]:
    """Return a task's model and its marks, having made it several times to check that batches do not change the result.

    Raises:
        TaskError: if two models differ, or the parameters have a form that cannot be shared.
    """
    module = make_model(task, 0)
    _check_form(module)
    _check_local(module, task)
    with torch.no_grad():
        marks, outputs = _marks(module), Probe(task, module).outputs(copied(inputs))
        for turn in ("again", "after another batch"):
            known = [ref(parameter) for parameter in module.parameters()]
            del module  # two models may not fit in memory
            module = make_model(task, 0)
            if {id(reference()) for reference in known} & {id(parameter) for parameter in module.parameters()}:
                msg = "its model() returns the same parameters twice; make a new model every time"
                raise TaskError(msg)
            as_made = _marks(module) == marks
            if turn != "again":
                Probe(task, module).outputs(_turned(inputs, 2))
            if not as_made or not same(outputs, Probe(task, module).outputs(copied(inputs))):
                raise TaskError(_ANOTHER if turn == "again" and not as_made else REMEMBERS)
    return module, marks


def _check_form(module: nn.Module) -> None:
    """Refuse parameters in a form that cannot be shared."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if (wrong := _wrong_form(name, tensor)) is not None:
            raise TaskError(wrong)
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            msg = "its model is compiled by torch.jit, which hides its layers; return the module itself"
            raise TaskError(msg)
        if getattr(part, "sparse", False):
            msg = f"its model's `{name}` makes sparse gradients, which cannot be clipped; leave out sparse=True"
            raise TaskError(msg)
    sizes = [tensor.numel() for tensor in trained(module).values()]
    if not sizes or 0 in sizes:
        msg = (
            "its model has nothing to train, or parameters without elements; set requires_grad=True on what should "
            "be trained"
        )
        raise TaskError(msg)


def _wrong_form(name: str, tensor: Tensor) -> str | None:
    """Return what is wrong with the form of a parameter or buffer; None if nothing is."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return f"its model's parameter `{name}` has no size yet; use layers of fixed size, not nn.Lazy…"
    if tensor.requires_grad and tensor.dtype != torch.float32:
        advice = "make all of them float32, or freeze them"
        if tensor.is_complex():
            advice = "make it float32, with a last dimension of 2, and write torch.view_as_complex in forward"
        return f"its model trains parameters that are not float32, such as `{name}`, of {tensor.dtype}; {advice}"
    if tensor.dtype not in DTYPES:
        return f"its model's `{name}` is of {tensor.dtype}, which its file cannot hold; use another type of number"
    if tensor.device.type != "cpu":
        return f"its model's `{name}` is on {tensor.device}; make it on the CPU, and leave devices to Cloister"
    if tensor.layout != torch.strided:
        return f"its model's `{name}` is sparse, which its file cannot hold; keep it dense, by .to_dense()"
    return None


def _check_local(module: nn.Module, task: Task) -> None:
    """Refuse patterns of local parameters that fit no trained parameter, or all of them."""
    patterns: object = task.local
    if not isinstance(patterns, list | tuple) or not all(isinstance(expression, str) for expression in patterns):
        msg = 'its `local` is not a list of names; write local = ("head.*",)'
        raise TaskError(msg)
    names = list(trained(module))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            msg = f"its `local` names {pattern!r}, but no trained parameter of its model is called so; correct it"
            raise TaskError(msg)
    if not shared(module, task.local):
        msg = "its `local` keeps every trained parameter at the site; leave something to share"
        raise TaskError(msg)
    steps: object = task.local_steps
    if not isinstance(steps, int) or steps < 0 or (steps and not patterns):
        msg = "its `local_steps` is no number of steps that train what its `local` names; set both, or neither"
        raise TaskError(msg)


def _check_shared(module: nn.Module) -> None:
    """Refuse tensors that overlap in memory: a change to one would change the other, unaccounted for."""
    reach = sorted((*_reach(tensor), name) for name, tensor in tensors_of(module).items() if tensor.numel())
    for (_, end, name), (start, _, other) in pairwise(reach):
        if start < end:
            msg = (
                f"its model's `{name}` and `{other}` share memory but are not one parameter; assign the parameter "
                "itself to both, or a copy"
            )
            raise TaskError(msg)


def _reach(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses where a tensor's memory begins and ends."""
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _check_state(probe: Probe, marks: _Marks, inputs: Inputs, targets: Tensor) -> None:
    """Refuse a task that changes state when it runs, or trains anything but the model."""
    _check_unchanged(probe.module, marks, "forward")  # earlier checks have already run it
    kept = copied(inputs), targets.clone()
    first = None
    for turned in (False, True):
        batch, aims = (_turned(inputs, 3), targets.flip(0)[:3]) if turned else (inputs, targets)
        outputs = probe.outputs(batch)
        first = outputs.detach().clone() if first is None else first
        _check_unchanged(probe.module, marks, "forward")
        loss = probe.loss(outputs, aims)
        _check_unchanged(probe.module, marks, "its loss")
        if not turned and any(parameter.grad is not None for parameter in probe.module.parameters()):
            msg = "its loss computes gradients itself; return the loss, and leave backward() to Cloister"
            raise TaskError(msg)
        check_leaves(probe, outputs, loss)
        probe.backward_from_loss(loss, outputs, aims)
        _check_unchanged(probe.module, marks, "a backward pass")
    if not (same(inputs, kept[0]) and same(targets, kept[1])):
        msg = "its model or loss changes the records passed to it; work on new tensors, without inplace=True"
        raise TaskError(msg)
    if first is None or not same(first, probe.outputs(inputs).detach()):
        raise TaskError(REMEMBERS)
    for parameter in probe.module.parameters():
        parameter.grad = None


def _turned(inputs: Inputs, most: int) -> Inputs:
    """Return the last records, in reverse order."""
    return mapped(lambda tensor: tensor.flip(0)[:most], inputs)


def _check_unchanged(module: nn.Module, marks: _Marks, when: str) -> None:
    now = _marks(module)
    changed = next((name for name in (*marks, *now) if now.get(name) != marks.get(name)), None)
    if changed is not None:
        if changed in dict(module.named_buffers()):
            msg = (
                f"its model's buffer `{changed}` changes in {when}, past clipping and noise; keep buffers as they are, "
                "without running statistics (track_running_stats=False) or counters"
            )
            raise TaskError(msg)
        msg = (
            f"parameters of its model change in {when}, past clipping and noise; leave steps to Cloister, and keep "
            "parameters as they are"
        )
        raise TaskError(msg)


def _marks(module: nn.Module) -> _Marks:
    """Return each tensor's shape, whether it is trained, and the sum of its bits; copies would double the memory."""
    return {
        name: (tensor.shape, tensor.requires_grad, int(_bits(tensor).sum(dtype=torch.int64)))
        for name, tensor in tensors_of(module).items()
    }


def _bits(tensor: Tensor) -> Tensor:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(kind)


def _shake(module: nn.Module) -> None:
    """Perturb all weights by about the scale at which layers are usually initialised."""
    seed_cpu(1)
    with torch.no_grad():
        for parameter in trained(module).values():
            inward = parameter[0].numel() if parameter.dim() else 1
            parameter.add_(torch.randn_like(parameter), alpha=max(1, inward) ** -0.5)


def _scale(module: nn.Module, factor: float) -> None:
    with torch.no_grad():
        for parameter in trained(module).values():
            parameter.mul_(factor)
