"""Run a task on records that it makes up, so that errors name the method that fails before a real record is read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from client.data.inputs import Inputs, as_inputs, call, count, mapped, named, rows, tensors
from client.dpsgd.torch_draws import forked, seed_cpu
from client.state.model_parts import DTYPES
from client.task.advice import advice_on_loss, advice_on_model, advice_on_outputs, advice_on_value
from client.task.conversions import converted
from client.task.forms import form_of, one_form
from privacy.errors import DataError, TaskError
from privacy.failures import raised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from client.data.inputs import Batch
    from client.task.task import Task

MADE_UP, OWN = "made-up record", "record"
"""The records on which a task is tried: made up by the task, or the site's own."""

_FEWEST = 4
_USUAL = "for example torch.rand(8, 30), torch.arange(8) % 2 for 30 numbers a record and two classes"
_SIZES = (5, 7, 11, 13, 17, 19, 23)


@dataclass(frozen=True)
class Example:
    """Made-up records in the form that a task reads."""

    inputs: Inputs
    targets: Tensor

    @classmethod
    def of(cls, task: Task) -> Example:
        """Return the records that a task makes up.

        Raises:
            TaskError: if they cannot be used to try the task.
        """
        seed_cpu(0)
        inputs, targets = made_up(task)
        inputs, targets = mapped(Tensor.detach, inputs), targets.detach()
        for name, part in (*named(inputs).items(), ("targets", targets)):
            if part.dim() == 0 or len(part) < _FEWEST or len(part) != len(tensors(inputs)[0]):
                msg = (
                    f"its example has {name} {one_form(part)}{_length(part)}; make up at least {_FEWEST} records, with "
                    f"one target per input, for example {suggested(inputs, targets)}"
                )
                raise TaskError(msg)
            if not part.is_complex() and part.dtype not in DTYPES:
                msg = (
                    f"its example has {name} {one_form(part)}, with which torch hardly computes; load int32 or float32"
                )
                raise TaskError(msg)
            if part.is_complex() or not part.isfinite().all():
                msg = f"its example has {name} that are complex or not finite; make up finite real numbers"
                raise TaskError(msg)
        for name, parts in (("inputs", tensors(inputs)), ("targets", [targets])):
            if all((part == part[:1]).all() for part in parts):
                msg = f"its example has the same {name} in every record; make up different records, of every class"
                if name == "targets":
                    msg += "; if loss() needs no targets, return torch.arange(n)"
                raise TaskError(msg)
        return cls(inputs, targets)

    def batch(self) -> Batch:
        """Return a batch of these records whose size differs from all their other dimensions, if possible."""
        others = [size for part in (*tensors(self.inputs), self.targets) for size in part.shape[1:]]
        size = next((size for size in _SIZES if size not in others), _SIZES[-1])
        chosen = torch.arange(size) % len(self.targets)
        return rows(self.inputs, chosen), self.targets[chosen]

    def check(self, inputs: object, targets: object, path: Path) -> Batch:
        """Return a site's own records, converted to the types of these, if they have their form.

        Raises:
            DataError: if they have not.
        """
        try:
            parts, aims = (
                as_inputs(converted(inputs, self.inputs, "inputs")), converted(targets, self.targets, "targets")
            )  # fmt: skip
        except DataError as error:
            msg = f"{path}: {error}"
            raise DataError(msg) from error
        if any(part.layout != torch.strided for part in ([*tensors(parts)] if parts is not None else [])) or (
            isinstance(aims, Tensor) and aims.layout != torch.strided
        ):
            msg = f"{path}: its load() returns a sparse tensor; return dense ones"
            raise DataError(msg)
        read = f"{form_of(inputs if parts is None else parts)} and {form_of(aims)}"
        wanted = f"{form_of(self.inputs)} and {form_of(self.targets)}"
        if parts is None or not isinstance(aims, Tensor) or read != wanted:
            msg = (
                f"{path}: the task read inputs and targets {read}, but its example has {wanted}; correct one of the two"
            )
            if parts is not None and _other_lengths(parts, self.inputs):
                msg += "; pad all texts to one length, a constant of the task, in load() and in example()"
            elif parts is not None and isinstance(aims, Tensor):
                msg += f"; if load() is right, let example() return for example {suggested(parts, aims)}"
            raise DataError(msg)
        return parts, aims


@dataclass(frozen=True)
class Probe:
    """A task and its model, in training mode on the CPU."""

    task: Task
    module: nn.Module
    records: str = MADE_UP
    number: torch.dtype = torch.float32
    """Of inputs, outputs and losses; float64 where a comparison is repeated in double precision."""

    def naming(self, method: str, count: int) -> AbstractContextManager[None]:
        """Turn whatever the task raises into an error that names its method; on own records, without its message."""
        own = type(self.task).__module__ if self.records == OWN else ""
        return naming(method, f" on {count} {self.records}{'s' * (count > 1)}", own)

    def outputs(self, inputs: Inputs, seed: int = 0) -> Tensor:
        """Return the model's outputs `(n, ...)`, with dropout drawn from the seed.

        Raises:
            TaskError: if the model fails, or its outputs are not one float32 row per record.
        """
        seed_cpu(seed)
        given = inputs if self.number is torch.float32 else mapped(_doubled, inputs)
        with (
            self._advising(lambda failure: advice_on_model(self.module, given, failure)),
            self.naming("model", count(inputs)),
        ):
            outputs: object = call(self.module, given)
        _check_seed(seed, "model")
        if not isinstance(outputs, Tensor):
            example = advice_on_outputs(outputs, count(inputs))
            msg = f"its model returns {one_form(outputs)}; return one tensor with one row per record{example}"
            raise TaskError(msg)
        if outputs.dtype != self.number:
            doubles = any(part.dtype == torch.float64 for part in tensors(inputs))
            instead = (
                "inputs.float() from example() and load()"
                if doubles
                else (
                    f"for example {'outputs.float()' if outputs.is_floating_point() else 'scores instead of classes'}"
                )
            )
            msg = f"its model returns {one_form(outputs)}; return {'' if doubles else 'float32, '}{instead}"
            raise TaskError(msg)
        if outputs.dim() == 0 or len(outputs) != count(inputs):
            msg = (
                f"its model makes outputs of shape {tuple(outputs.shape)} from {count(inputs)} records; keep one row "
                "per record in every layer: flatten from dimension 1 on, and never squeeze dimension 0"
            )
            raise TaskError(msg)
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor, seed: int = 0) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            TaskError: if it fails, or is not a float32 scalar.
        """
        seed_cpu(seed)
        with self.naming_loss(outputs, targets):
            loss: object = self.task.loss(outputs, targets)
        _check_seed(seed, "loss")
        if not isinstance(loss, Tensor) or loss.dim() != 0 or loss.dtype != self.number:
            msg = f"its loss returns {one_form(loss)}; {advice_on_value(loss, outputs, targets)}"
            raise TaskError(msg)
        return loss

    def backward(self, outputs: Tensor, gradient: Tensor | None = None) -> None:
        """Run the backward pass from outputs with this gradient, or from a loss.

        Raises:
            TaskError: if it fails.
        """
        with naming("backward pass"):
            outputs.backward(gradient)

    def backward_from_loss(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Run the backward pass from the loss of outputs and targets.

        Raises:
            TaskError: if it fails.
        """
        with self._advising_on_loss(outputs, targets):
            self.backward(loss)

    @contextmanager
    def naming_loss(self, outputs: Tensor, targets: Tensor) -> Iterator[None]:
        """Turn whatever the loss raises into an error that says what to write instead, if that is known."""
        with self._advising_on_loss(outputs, targets), self.naming("loss()", len(outputs)):
            yield

    def _advising_on_loss(self, outputs: Tensor, targets: Tensor) -> AbstractContextManager[None]:
        return self._advising(lambda failure: advice_on_loss(self.task, outputs, targets, failure))

    @contextmanager
    def _advising(self, advice: Callable[[BaseException | None], str | None]) -> Iterator[None]:
        """Let an error on made-up records say what to write instead, if that is known."""
        try:
            yield
        except TaskError as error:
            with forked():
                said = advice(error.__cause__) if self.records == MADE_UP else None
            if said is None:
                raise
            raise TaskError(said) from error

    def metrics(self, outputs: Tensor, targets: Tensor) -> None:
        """Try the metrics.

        Raises:
            TaskError: if they are not one number per record.
        """
        with self.naming("metrics()", len(outputs)):
            metrics: object = self.task.metrics(outputs, targets)
        one_a_record(metrics, len(outputs))


def _other_lengths(inputs: Inputs, like: Inputs) -> bool:
    """Return whether inputs are rows of whole numbers, such as of words, that only have another length than others."""
    pairs = list(zip(tensors(inputs), tensors(like), strict=False))
    return len(tensors(inputs)) == len(tensors(like)) and all(
        part.dtype == other.dtype and part.dim() == other.dim() == 2 and not part.is_floating_point()  # noqa: PLR2004
        for part, other in pairs
    )


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.dtype is torch.float32 else tensor


def made_up(task: Task) -> Batch:
    """Return the records that a task makes up, drawn from torch's generator as it is.

    Raises:
        TaskError: if they are not inputs and targets.
    """
    with naming("example()"):
        pair: object = task.example()
    if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004 - inputs and targets
        number = f"{len(pair)} things" if isinstance(pair, tuple | list) else form_of(pair)
        msg = f"its example() returns {number}; return two, the inputs and the targets that load() would: {_USUAL}"
        raise TaskError(msg)
    inputs, targets = pair
    checked = as_inputs(inputs)
    if checked is None or not isinstance(targets, Tensor):
        msg = (
            f"its example has inputs and targets {form_of(inputs)} and {form_of(targets)}; return inputs (one tensor, "
            f"or a tuple or dict of tensors) and a tensor of targets: {_USUAL}"
        )
        raise TaskError(msg)
    return checked, targets


def suggested(inputs: Inputs, targets: Tensor) -> str:
    """Return code that makes up eight records of the form of these.

    >>> suggested({"words": torch.zeros(3, 20).long()}, torch.zeros(3, 1))
    "{'words': torch.randint(0, 2, (8, 20))}, torch.rand(8, 1)"
    """
    if isinstance(inputs, Tensor):
        made = _made_up(inputs)
    elif isinstance(inputs, dict):
        made = f"{{{', '.join(f'{name!r}: {_made_up(part)}' for name, part in inputs.items())}}}"
    else:
        made = f"({''.join(f'{_made_up(part)}, ' for part in inputs).strip()})"
    return f"{made}, {_made_up(targets)}"


def _made_up(part: Tensor) -> str:
    shape = ", ".join(("8", *(str(size) for size in part.shape[1:])))
    if part.is_floating_point():
        dtype = "" if part.dtype == torch.float32 else f", dtype={part.dtype}"
        return f"torch.rand({shape}{dtype})"
    shape = f"({shape},)" if part.dim() <= 1 else f"({shape})"
    if part.dtype == torch.bool:
        return f"torch.rand({shape}) < 0.5"
    return f"torch.randint(0, 2, {shape}{'' if part.dtype == torch.int64 else f', dtype={part.dtype}'})"


def _length(part: Tensor) -> str:
    return f" with n = {len(part)}" if part.dim() else ""


def one_a_record(metrics: object, count: int) -> dict[str, Tensor]:
    """Check and return what a task's `metrics` returned: tensors `(count,)` by name, or `()` for one record.

    Raises:
        TaskError: if it is anything else.
    """
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        msg = f"its metrics() returns {one_form(metrics)}; return a dict with a tensor `(n,)` for each name"
        raise TaskError(msg)
    shapes = {(count,), ()} if count == 1 else {(count,)}
    for name, values in metrics.items():
        if not isinstance(values, Tensor) or values.is_complex() or values.shape not in shapes:
            msg = f"its metric {name!r} is {one_form(values)}; return a tensor `(n,)` with one value per record"
            raise TaskError(msg)
    return metrics


def make_model(task: Task, seed: int) -> nn.Module:
    """Make a task's untrained model, in training mode; the same seed gives the same model at every site.

    Raises:
        TaskError: if the task makes no model.
    """
    with forked(), naming("model()"):
        seed_cpu(seed)
        module: object = task.model()
    if not isinstance(module, nn.Module):
        msg = f"its model() returns {one_form(module)}; return a torch.nn.Module"
        raise TaskError(msg)
    return module.train()


def _check_seed(seed: int, method: str) -> None:
    if torch.initial_seed() != seed:
        msg = f"its {method} sets torch's seed, so dropout repeats its masks; leave seeds to Cloister"
        raise TaskError(msg)


def same(one: Inputs, other: Inputs) -> bool:
    """Return whether tensors are equal bit for bit, except for the sign of zero; NaN equals NaN."""
    return all(_same(*pair) for pair in zip(tensors(one), tensors(other), strict=True))


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


@contextmanager
def naming(method: str, on: str = "", module: str = "") -> Iterator[None]:
    """Turn whatever a task raises into an error that names its method; Ctrl-C passes through.

    Args:
        method: its name.
        on: which records.
        module: the task's module, if its message may quote a record: the error then names the line instead.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        words = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        reason = raised(error, module) if module else words
        msg = f"its {method} fails{on} ({reason}); correct it, or what example() makes up"
        raise TaskError(msg) from error
