"""Train a model for this site alone, on its own records without noise, as `[personal]` in site.toml says.

    ditto         after every round, the personal model v takes steps on its loss plus λ/2·‖v − w‖², w the shared model
                  after that round (Li et al., 2021, arXiv 2012.04221)
    fine-tuning   after the last round, the shared model is trained further

Nothing that leaves the site depends on a personal model. Training has its own module, optimizer and random stream, and
runs once the site has answered the server. Its number of steps follows from the size that the site declares, not from
the number of records, because the server sees how long a site takes. A failure is only logged.

The log and `metrics/NAME-RUN.personal.jsonl` compare both models on the held-out records.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.data.inputs import call
from client.dpsgd.optimizers import make_optimizer
from client.dpsgd.torch_draws import forked, seed_all
from client.round.admission import admit
from client.state.model_parts import check_constants, matches, shapes_of, trained
from client.state.personal_models import After
from client.task.user_code import foreign
from client.work.progress import add_line, finite, listed
from client.work.sums import OWN
from client.work.training import Study
from privacy.errors import CloisterError, TaskError
from privacy.failures import sentence
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from client.data.site_records import Records
    from client.round.admission import AdmittedRun
    from client.settings import Personal
    from client.site import Site
    from client.state.checkpoint import Checkpoint
    from client.state.personal_models import Values
    from client.task.task import Task
    from privacy.codec.update import Layout, Model, Shapes
    from privacy.run.settings import RunSettings

log = logging.getLogger("cloister.agent")


def is_due(admitted: AdmittedRun, number: int) -> bool:
    """Return whether this site trains a personal model after a round."""
    options, settings = admitted.site.settings.personal, admitted.settings
    return options is not None and settings.takes_steps and (options.method == "ditto" or number == settings.rounds)


def train_later(admitted: AdmittedRun, number: int) -> None:
    """Train the personal model of a round, if there is one, once the site has answered; go on after a restart."""
    if not is_due(admitted, number):
        return
    site = admitted.site
    try:
        site.personal_models.note_due(admitted.run, admitted.document)
    except OSError as error:
        log.warning("round %d: after a restart, its personal model would not be trained: %s", number, sentence(error))
    site.later(lambda: train_personal(admitted))


def train_personal(admitted: AdmittedRun) -> None:
    """Train this site's personal model of a run on, compare it with the shared one, and keep it; log a failure."""
    site = admitted.site
    try:
        checkpoint, options = admitted.checkpoint(), site.settings.personal
        if options and is_due(admitted, checkpoint.round):
            _train(admitted, checkpoint, options)
        site.personal_models.settle(admitted.run)
    except Exception as error:
        log.warning("the personal model was not trained; the run does not depend on it: %s", sentence(error))
        log.debug("personal model", exc_info=error)


def _train(admitted: AdmittedRun, checkpoint: Checkpoint, options: Personal) -> None:
    site, settings, work = admitted.site, admitted.settings, admitted.work
    if not isinstance(work, Study):
        return
    after = After(options.method, checkpoint.round, checkpoint.digest)
    shared = site.personal(admitted.manifest, admitted.run, site.models.result(settings, checkpoint))
    start = _start(admitted, shapes_of(work.module(settings.model_seed)), after)
    if start is None:  # the server delivered a sum again
        return
    steps = steps_of(options, settings, site.name)
    chance = randomness_of(settings, site.name, after.round)
    values = train_on(work, settings, shared, options, steps, chance, start=start)
    personal = replace(
        shared,
        vector=shared.layout.flatten(values),
        local={name: values[name] for name, _ in shared.layout.local},
    )
    _compare(admitted, shared, personal, after)
    path = site.personal_models.save(admitted.run, values, after)
    log.info("round %d of %d: personal model: %s", after.round, settings.rounds, path)


def steps_of(options: Personal, settings: RunSettings, site: str) -> int:
    """Return how many steps a site takes: its epochs over as many records as it declares."""
    return math.ceil(options.epochs * settings.cohort.sizes[site] / options.batch_size)


def train_on(
    study: Study,
    settings: RunSettings,
    shared: Model,
    options: Personal,
    steps: int,
    randomness: Randomness,
    *,
    start: Values,
) -> dict[str, NDArray[np.float32]]:
    """Return the trained parameters, by name, of a site's personal model; see `descend`.

    Raises:
        TaskError: if the task's code fails, changes a constant, or values stop being finite.
    """
    module = study.load_into(study.module(settings.model_seed), shared)
    return train_module(
        study.task,
        study.name,
        module,
        study.training,
        options,
        layout=shared.layout,
        steps=steps,
        randomness=randomness,
        start=start,
    )


def train_module(
    task: Task,
    name: str,
    module: nn.Module,
    records: Records,
    options: Personal,
    *,
    layout: Layout,
    steps: int,
    randomness: Randomness,
    start: Values,
) -> dict[str, NDArray[np.float32]]:
    """Return the trained parameters, by name, of a module with the shared model in it; see `descend`.

    Raises:
        TaskError: if the task's code fails, changes a constant, or values stop being finite.
    """
    with foreign(name, "training of a personal model"):
        descend(task, module, records, options, steps, randomness, start=start)
    check_constants(module, layout)
    return {name: np.array(parameter.detach().cpu().numpy()) for name, parameter in trained(module).items()}


def _start(admitted: AdmittedRun, shapes: Shapes, after: After) -> Values | None:
    """Return the values from which training starts, none if from the shared model; None if it is done already."""
    stored = admitted.site.personal_models.load(admitted.run, shapes)
    if stored is None:
        return {}
    values, before = stored
    if before == after:
        return None
    return values if before.method == after.method == "ditto" else {}


def randomness_of(settings: RunSettings, site: str, number: int) -> Randomness:
    """Return what a site draws from after a round: fresh, unless the run has a seed."""
    if settings.seed is None:
        return Randomness.fresh()
    return Randomness.seeded(settings.seed, site, number, "personal")


def descend(
    task: Task,
    module: nn.Module,
    records: Records,
    options: Personal,
    steps: int,
    randomness: Randomness,
    *,
    start: Values,
) -> None:
    """Train a module in place on batches of records, without noise.

    Args:
        task: gives the loss.
        module: the shared model, on the records' device.
        records: the site's records to train on; at least one.
        options: the site's settings.
        steps: how many steps to take.
        randomness: for batches, and for what the model draws.
        start: values from which parameters start, by name; the others start as the module has them.

    Raises:
        TaskError: if values stop being finite.
    """
    held = trained(module)
    chosen = {name: parameter for name, parameter in held.items() if matches(name, options.layers)}
    towards = {name: parameter.detach().clone() for name, parameter in chosen.items()} if options.pull else {}
    with torch.no_grad():
        for name in chosen.keys() & start.keys():
            chosen[name].copy_(torch.from_numpy(start[name]))
    optimizer = make_optimizer(options.optimizer, list(chosen.values()), options.learning_rate)
    module.train()
    with forked(), _only(held, chosen):
        seed_all(randomness)
        for batch in _batches(len(records), options.batch_size, steps):
            inputs, targets = records.select(batch)
            optimizer.zero_grad()
            loss: Any = task.loss(call(module, inputs), targets)
            loss.backward()
            for name, shared in towards.items():
                _pull(chosen[name], shared, options.pull)
            optimizer.step()
    if not all(bool(parameter.isfinite().all()) for parameter in chosen.values()):
        msg = "its values are no longer finite; lower learning_rate in [personal] of site.toml"
        raise TaskError(msg)


@contextmanager
def _only(held: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> Iterator[None]:
    """Let only some of the trained parameters have gradients."""
    for name, parameter in held.items():
        parameter.requires_grad_(name in chosen)
    try:
        yield
    finally:
        for parameter in held.values():
            parameter.requires_grad_()


def _batches(count: int, size: int, steps: int) -> Iterator[Tensor]:
    """Yield the numbers of each batch's records, `(size,)`: one random order of all `count` records after another."""
    waiting = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(count)])
        batch, waiting = waiting[:size], waiting[size:]
        yield batch


@torch.no_grad()
def _pull(parameter: Tensor, shared: Tensor, strength: float) -> None:
    """Add the gradient of strength/2·‖v − w‖²."""
    away = parameter.detach() - shared
    if parameter.grad is None:
        parameter.grad = strength * away
    else:
        parameter.grad.add_(away, alpha=strength)


def _compare(admitted: AdmittedRun, shared: Model, personal: Model, after: After) -> None:
    """Log and write what both models are worth on the site's held-out records, if it has any."""
    work, settings = admitted.work, admitted.settings
    count, of_shared = work.measure(settings, shared)
    if not count:
        return
    of_personal = work.measure(settings, personal)[1]
    path = admitted.site.place.folder / OWN / f"{settings.name}-{admitted.run[:8]}.personal.jsonl"
    add_line(path, {"round": after.round, "model": after.model}, {
        "time": round(time.time(), 3),
        "method": after.method,
        "records": count,
        "shared": finite(of_shared),
        "personal": finite(of_personal),
    })  # fmt: skip
    log.info(
        "round %d of %d: personal model (%s) %s on %d held-out records; shared model %s",
        after.round, settings.rounds, after.method, listed(of_personal), count, listed(of_shared),
    )  # fmt: skip


def go_on(site: Site) -> None:
    """Train the personal models of earlier runs that a stopped agent left untrained; log a failure."""
    for document in site.personal_models.due() if site.settings.personal else ():
        try:
            train_personal(admit(site, document))
        except (CloisterError, OSError) as error:
            log.warning("a personal model of an earlier run is not trained: %s", sentence(error))
