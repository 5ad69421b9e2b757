"""DP-SGD (Abadi et al., 2016) with Opacus.

Opacus leaves these points to its caller:

- Batches are Poisson samples: each record is in a step's batch independently, with probability `sample_rate`. The
  accountant assumes exactly that; shuffled batches cost far more than it would report.
- A step with an empty batch still adds noise and still counts. Skipping it would cost utility and, worse, reveal that
  the batch was empty.
- Gradients are divided by sample_rate times the size that the site declared in public, never by a private count.
- Noise comes from a cipher, not from torch's generator.

A group of processes (`client.dpsgd.process_group`) takes the same steps as a single process: the first process draws
every sample and all noise from the round's one random stream. If each process sampled its own records, every process
would need a fresh stream for the guarantee to hold, and nobody could repeat the round to check it. Each process sums
the clipped gradients of its own records in the sample; the first adds the noise; Opacus sums, and all take that step.

`client.gradients` computes a batch's clipped sum. The run's optimizer takes steps with the noisy gradients alone, at
the learning rates of the run's schedule: that is post-processing, and costs no ε.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel

from client.data.inputs import count, move
from client.data.site_records import records_of
from client.dpsgd.additivity import ClippedSum, check_batch, check_mode, memory_of
from client.dpsgd.corrections import Correction
from client.dpsgd.optimizers import make_optimizer, set_rate
from client.dpsgd.process_group import Order
from client.dpsgd.sampling import Chance
from client.dpsgd.torch_draws import forked, seed_all
from client.gradients.augmentation import Augmentation
from client.gradients.choice import MOST_RECORDS, Choice, choose, make_mode
from client.gradients.distributed import DistributedOptimizer
from client.gradients.loss import RecordLoss
from client.gradients.memory import NoMemoryLeft, rows_within, running_out
from client.gradients.mode import quiet, trainable
from client.gradients.noisy_optimizer import CipherOptimizer
from client.settings import Computing
from client.state.model_parts import kept, shared
from client.task.interactions import InteractionError
from client.task.probe import made_up
from client.task.user_code import is_memory
from privacy.errors import TaskError
from privacy.noise.randomness import Randomness
from strategies.algorithm import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from client.data.inputs import Batch
    from client.data.site_records import Records
    from client.dpsgd.kept_steps import KeptSteps, StepsFile
    from client.dpsgd.process_group import ProcessGroup
    from client.settings import Gradients
    from client.task.task import Task
    from privacy.run.manifest import Manifest
    from strategies.algorithm import LocalSolver

log = logging.getLogger("cloister.agent")

_DEFAULT = Computing()
_TRIED = 32  # made-up records on which the one-by-one mode is tried
_SOME, _OFTEN = 8, 40  # records checked in a round; a whole part instead, once in 40 steps on average
_ROUNDING = 1e-5  # in units of C
_MEASURED = 2, 10  # records at a time, to measure how much memory they take


@dataclass
class _Way:
    """The mode chosen to compute a task's gradients, and the modes that failed."""

    choice: Choice | None = None
    failed: dict[Gradients, str] = field(default_factory=dict)  # with the reasons
    most: int | None = None  # records at a time, once memory has run out


_WAYS: WeakKeyDictionary[Task, dict[Computing, _Way]] = WeakKeyDictionary()


def train(task: Task, model: nn.Module, records: Records | Batch, size: int, manifest: Manifest,
          randomness: Randomness, *, solver: LocalSolver = PLAIN, computing: Computing = _DEFAULT,
          group: ProcessGroup | None = None, number: int = 1, file: StepsFile | None = None) -> None:  # fmt: skip
    """Train `model` in place for one round.

    Args:
        task: gives the loss.
        model: on the device to train on.
        records: the site's, `(n, ...)`, on the same device.
        size: the number of training records that the site declares in public, about n.
        manifest: steps, sampling rate, optimizer, learning rates, clipping norm and σ.
        randomness: for sampling and noise; a new one every round.
        solver: what the run's algorithm adds to each step's noisy gradient, and the number of steps.
        computing: the site's settings for computing gradients.
        group: the group whose first process this is; the others must call `take_part`.
        number: the round's number in the run, from 1; the schedule of learning rates depends on it.
        file: keeps steps, if the group has one process, and has those from which to go on.

    Raises:
        DataError: if a record cannot be read.
        TaskError: if no mode can compute the model's gradients, or the run trains nothing.
        DeviceError: if the group has lost a process.
    """
    training, norm = manifest.settings.training, manifest.settings.privacy.max_grad_norm
    if training is None or norm is None:
        msg = f"the run {manifest.settings.name} computes statistics; it trains nothing"
        raise TaskError(msg)
    steps = training.steps if solver.steps is None else solver.steps
    if steps == 0:
        return
    choice = way_to_train(task, model, computing)
    order = Order(
        task=manifest.settings.task,
        model_seed=manifest.settings.model_seed,
        gradients=choice.gradients,
        physical_batch=choice.physical_batch,
        precision=computing.precision,
        steps=steps,
        learning_rate=training.learning_rate,
        optimizer=training.optimizer,
        schedule=training.schedule,
        number=number,
        augmentation_multiplicity=training.augmentation_multiplicity,
        rounds=manifest.settings.rounds,
        steps_per_round=training.steps,
        max_grad_norm=norm,
        clipping=manifest.settings.privacy.clipping,
        expected_batch_size=max(1.0, training.sample_rate * size),
        proximal=solver.proximal,
        offset=solver.offset is not None,
        local_steps=min(task.local_steps, steps),
    )
    offset = None if solver.offset is None else torch.from_numpy(np.asarray(solver.offset, np.float32))
    # A run with a seed can be repeated; it protects nobody.
    seed = manifest.settings.seed
    drawn = Randomness.fresh() if seed is None else Randomness.seeded(seed, "torch")
    chance = Chance(randomness, training.sample_rate, manifest.update_noise, drawn)
    if group is None:
        kept_steps = file.of(order, trainable(model), offset) if file else None
        fitted = _take_steps(task, model, records_of(records), order, chance, offset, kept_steps=kept_steps)
    else:
        with group.round():
            group.hand_out(order)
            fitted = _take_steps(task, model, records_of(records), order, chance, offset, group=group)
    _WAYS[task][computing].choice = replace(choice, physical_batch=fitted)  # the next round starts with what fitted


def take_part(task: Task, model: nn.Module, records: Records | Batch, order: Order, group: ProcessGroup) -> None:
    """Take part in a round, as a worker.

    Args:
        task: gives the loss.
        model: on the device to train on; its parameters are set to the first process's.
        records: the same as the first process's, on this device.
        order: from the first process.
        group: the group in which this process is a worker.

    Raises:
        DeviceError: if the group has lost a process.
    """
    no_noise = Chance(Randomness.fresh(), 0.0, 0.0, Randomness.fresh())  # nothing is drawn from it
    offset = (
        torch.zeros(sum(parameter.numel() for parameter in shared(model, task.local).values()))
        if order.offset
        else None
    )
    with group.round():
        _take_steps(task, model, records_of(records), order, no_noise, offset, group=group)


def way_to_train(
    task: Task, model: nn.Module, computing: Computing, proof: Callable[[Choice], None] = lambda _: None
) -> Choice:
    """Choose how to compute a task's gradients, once, by trying modes on records that the task makes up.

    Unless the site's settings name a mode, the next mode replaces one that fails on some records.

    Args:
        task: gives the loss.
        model: on the device to train on; is not changed.
        computing: the site's settings for computing gradients.
        proof: tries a mode on other records; raises `TaskError` if it fails, `InteractionError` if they interact.

    Raises:
        InteractionError: if records interact.
        TaskError: if no mode works, or the mode that the site's settings name does not.
    """
    known = _WAYS.setdefault(task, {}).setdefault(computing, _Way())
    while True:
        choice = known.choice or _choose(task, model, computing, known)
        try:
            if known.choice is None:
                _try(task, model, computing, choice)
            proof(choice)
        except TaskError as error:
            if error.__cause__ and is_memory(error.__cause__) and choice.physical_batch > 1:
                known.choice, known.most = None, choice.physical_batch // 2
                continue
            if isinstance(error, InteractionError) or computing.gradients != "auto":
                raise
            known.choice, known.failed[choice.gradients] = None, str(error)
            continue
        if known.choice is None:
            log.info(
                "%s: gradients by %s, %d records at a time: %s",
                type(task).__name__, choice.gradients, choice.physical_batch, choice.reason,
            )  # fmt: skip
        known.choice = choice
        return choice


def _choose(task: Task, model: nn.Module, computing: Computing, way: _Way) -> Choice:
    choice = choose(task, model, _made_up(task, model), computing, way.failed)
    if computing.memory_mb and not computing.physical_batch:
        choice = replace(choice, physical_batch=_within(task, model, computing, choice))
    return choice if way.most is None else replace(choice, physical_batch=min(choice.physical_batch, way.most))


def _within(task: Task, model: nn.Module, computing: Computing, choice: Choice) -> int:
    """Return how many made-up records can be computed at a time within the memory that the site's settings allow."""
    (few, some), (many, more) = (
        (rows, memory_of(task, model, _made_up(task, model), choice, computing.precision, rows)) for rows in _MEASURED
    )
    limit = computing.memory_mb * 1_000_000
    size = rows_within(limit, (few, some), (many, more), MOST_RECORDS)
    if size == 1 and some - (more - some) * (few - 1) // (many - few) > limit:
        log.warning("a single record's gradients take more than memory_mb = %d", computing.memory_mb)
    return size


def _try(task: Task, model: nn.Module, computing: Computing, choice: Choice) -> None:
    inputs, targets = _made_up(task, model)
    together = _TRIED if choice.gradients == "autograd" else choice.physical_batch  # it computes one record at a time
    rows = torch.arange(together) % count(inputs)
    check_mode(task, model, (inputs, targets), rows, choice, computing.precision, at_once=together)


def _made_up(task: Task, model: nn.Module) -> Batch:
    device = next(model.parameters()).device
    with forked():
        inputs, targets = made_up(task)
    return move(inputs, device), targets.to(device)


def _take_steps(task: Task, model: nn.Module, records: Records, order: Order, chance: Chance,
                offset: Tensor | None, *, group: ProcessGroup | None = None,
                kept_steps: KeptSteps | None = None) -> int:  # fmt: skip
    """Take an order's steps; return the number of records computed at a time, in the end."""
    parts = list(shared(model, task.local).values()), list(kept(model, task.local).values())
    if group:
        group.broadcast([*model.buffers(), *([] if offset is None else [offset])])
        with group.talking():
            model = DifferentiallyPrivateDistributedDataParallel(model)  # copies the first process's parameters
    fitted = order.physical_batch
    for still, steps in zip(parts if order.local_steps else [[]], order.phases, strict=True):
        if kept_steps and kept_steps.step >= steps.stop:
            continue
        with _frozen(still):
            phase = _Phase(steps, parts[0], [*parts[0], *parts[1]], offset, fitted, kept_steps)
            fitted = _take_phase(task, model, records, order, chance, phase, group=group)
    return fitted


@dataclass(frozen=True)
class _Phase:
    """Some of a round's steps: all of them, or those for what stays at the site or for what is shared."""

    steps: range
    shared: list[Tensor]  # parameters, in the order of the layout and of the offset
    trained: list[Tensor]  # in this phase or another
    offset: Tensor | None
    fitted: int  # records to compute at a time
    kept: KeptSteps | None


@contextmanager
def _frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Leave some trained parameters as they are: they have no gradient, no part in clipping, and no noise."""
    for parameter in parameters:
        parameter.requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_()


def _take_phase(task: Task, model: nn.Module, records: Records, order: Order, chance: Chance, phase: _Phase, *,
                group: ProcessGroup | None) -> int:  # fmt: skip
    """Take some of a round's steps; return the number of records computed at a time, in the end."""
    precision = torch.bfloat16 if order.precision == "bfloat16" else torch.float32
    mode = make_mode(order.gradients, model, RecordLoss(task), order.max_grad_norm, precision, order.clipping)
    if order.augmentation_multiplicity:
        mode.augmentation = Augmentation(task, order.augmentation_multiplicity)
    descent = make_optimizer(order.optimizer, trainable(model), order.learning_rate)
    if (order.proximal or phase.offset is not None) and phase.shared[0].requires_grad:
        # Before each step, on the noisy gradient, which all processes share.
        descent.register_step_pre_hook(Correction(phase.shared, order.proximal, phase.offset))
    optimizer = (partial(DistributedOptimizer, group=group) if group else CipherOptimizer)(
        descent,
        noise_multiplier=chance.noise_multiplier,
        max_grad_norm=order.max_grad_norm,
        expected_batch_size=order.expected_batch_size,
        loss_reduction="mean",
        randomness=chance.randomness,
    )
    total, fitted, kept_steps, steps = len(records), phase.fitted, phase.kept, phase.steps
    if kept_steps and kept_steps.step in steps:
        kept_steps.restore(phase.trained, descent, chance)
        log.info("this round goes on after step %d of %d", kept_steps.step, order.steps)
        fitted, steps = kept_steps.fitted(fitted), range(kept_steps.step + 1, steps.stop)
    try:
        with quiet(), closing(optimizer), forked():
            seed_all(chance.by_torch)  # with a known seed, a dropout mask would link records
            several = torch.empty(0, dtype=torch.int64)
            for step in steps:
                chosen = group.own_part(chance.sample, total) if group else chance.sample(total).nonzero().squeeze(1)
                several = chosen if chosen.shape[0] > 1 else several
                if step == order.steps and (not group or group.rank == 0):
                    clipped = ClippedSum(mode, optimizer, _ROUNDING * order.max_grad_norm)
                    _look(clipped, records, several, order.steps, fitted)
                optimizer.draw_ahead()
                set_rate(descent, order.rate(step))
                fitted = optimizer.take_what_fits(mode, records, chosen, fitted)
                if kept_steps and kept_steps.is_due(step, phase.steps):
                    kept_steps.keep(step, phase.trained, descent, chance, fitted)
                    seed_all(chance.by_torch)
    finally:
        mode.to_standard_module()
    if mode.dropped:
        log.warning(
            "%d times in this round, a record of a batch had no finite gradient and added nothing", mode.dropped
        )
    return fitted


def _look(clipped: ClippedSum, records: Records, chosen: Tensor, steps: int, physical_batch: int) -> None:
    """Check on some records `(k,)` of the last batch that single records' gradients are clipped.

    It takes the last batch because faults that start during a round, with larger weights or after many calls, show
    there. It costs as much as computing three or four parts. So it checks a whole part once in `_OFTEN` steps on
    average, and `_SOME` records otherwise; fewer if memory runs out.

    Raises:
        InteractionError: if they are not; nothing has left the site.
    """
    rng = torch.Generator().manual_seed(_below(1 << 62))
    at_once = clipped.mode.at_once(physical_batch)
    most = at_once if _below(_OFTEN) < steps else min(_SOME, at_once)
    order = torch.randperm(len(chosen), generator=rng)
    while True:
        try:
            with running_out():
                check_batch(clipped, records.select(chosen[order[:most].sort()[0]]), rng)
        except NoMemoryLeft:
            if most <= 1:
                raise
        else:
            return
        most = max(1, most // 2)


def _below(count: int) -> int:
    """Return an unpredictable number below `count`; it does not affect what leaves the site."""
    return secrets.randbelow(count)
