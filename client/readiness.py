"""What a site can know before a round is charged, it finds out before: as it says that it is ready, and at each plan.

    dates    its roster and its certificate outlast the round
    disk     there is room for all that the round writes, and the ledger can be written
    records  there are some, and the task can use every one of them: `client.fitness`
    memory   a step on made-up records fits, as many as are computed at a time

Records and memory are looked at once a process. Nothing of that leaves the site, but that it takes part or not.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch

from client.dpsgd import train, way_to_train
from client.fitness import Fitness, example_of
from client.foreign import foreign, is_memory
from client.records import split_held_out
from client.space import needs, space_for
from privacy.errors import DataError, RefusedError, TaskError
from privacy.randomness import Randomness
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from client.settings import Data
    from client.site import Site
    from client.study import Study
    from privacy.manifest import Manifest
    from privacy.update import Layout


@contextmanager
def ready_to_be_charged(site: Site, manifest: Manifest, layout: Layout) -> Iterator[None]:
    """Check all of it but memory, and keep the room on the disk for as long as the context lasts.

    Raises:
        CloisterError: saying what stands in the way; nothing is charged then.
    """
    check_dates(site, manifest.settings.cohort.round_deadline_seconds)
    site.check_records_for(manifest.settings)
    ledger, _ = site.account(manifest.settings)
    ledger.check_writable()
    with space_for(needs(site.place.folder, ledger.path.parent, manifest, layout, site.algorithm(manifest))):
        yield


def check_dates(site: Site, seconds: float) -> None:
    """Check that what a site is known by outlasts a round.

    Raises:
        RefusedError: if it does not.
    """
    ends = {"roster": site.roster.expires}
    certificate = site.place.tls.certificate
    if certificate.exists():  # under Flower's own engines, connections are Flower's
        ends["TLS certificate"] = read_certificate(certificate).not_valid_after_utc.timestamp()
    for what, end in ends.items():
        if end < time.time() + seconds:
            date = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
            msg = f"{site.name}'s {what} ends on {date}, before a round would; it needs a new one from the coordinator"
            raise RefusedError(msg)


def check_records(study: Study, data: Data, path: Path) -> None:
    """Check that the task can use every record of a site.

    Raises:
        DataError: naming the record that it cannot use.
    """
    training, held_out = study.read
    module = study.module(0).to(training[0].device)
    fitness = Fitness(study.task, study.name, module)
    used, kept = split_held_out(len(training[0]) + len(held_out[0]), data.held_out)
    fitness.check(training, (used + 1).tolist(), path)
    fitness.check(held_out, (kept + 1).tolist(), path)


def check_metrics(study: Study, names: Collection[str], path: Path) -> None:
    """Check that an evaluation can compute these metrics of a task for every held-out record.

    Raises:
        DataError: if it cannot.
        TaskError: if one is not a number a record.
    """
    _, held_out = study.read
    module = study.module(0).to(held_out[0].device)
    Fitness(study.task, study.name, module).check_metrics(held_out, path, names)


def check_count(count: int, data: Data, path: Path, what: str) -> None:
    """Check that a run has records to be about.

    Raises:
        DataError: if not.
    """
    if count == 0:
        msg = f"{path}: with held_out = {data.held_out:g} no records are left {what}; change it, or add records"
        raise DataError(msg)


def check_memory(site: Site, manifest: Manifest) -> None:
    """Train a step on made-up records, as many as are computed at a time.

    Raises:
        RefusedError: if that does not fit in memory.
        TaskError: if there is no way to compute the task's gradients.
    """
    settings, computing = manifest.settings, site.settings.training
    if settings.training is None or settings.training.steps_per_round == 0:
        return
    study = site.study(settings.task)
    try:
        with foreign(study.name, "gradients", TaskError), torch.random.fork_rng(devices=[]):
            module = study.module(settings.model_seed).to(site.device)
            count = min(way_to_train(study.task, module, computing).physical_batch, len(study.training[0]))
            made_up = [part[torch.arange(count) % len(part)].to(site.device) for part in example_of(study.task)]
            step = replace(settings.training, steps_per_round=1, sample_rate=1.0)
            once = replace(manifest, settings=replace(settings, training=step))
            with study.refusing():
                made, chance = (made_up[0], made_up[1]), Randomness.fresh()
                train(study.task, module, made, count, once, chance, computing=computing)
    except TaskError as error:
        if error.__cause__ is None or not is_memory(error.__cause__):
            raise
        msg = (
            f"{site.name} cannot train {study.name}: a step needs more memory than is left there; set a smaller "
            "physical_batch in [training] of its site.toml, or take a larger machine"
        )
        raise RefusedError(msg) from error
