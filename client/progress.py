"""How good the model is after each round, over this site's held-out records: for the site's own eyes.

One file a run, `metrics/NAME-RUN.jsonl`, with a line of JSON for each round whose sum the site was brought in time:
round, digest of the model, number of records, and the mean of the loss and of each metric. No record, no tensor.

Nothing of it leaves, unless the policy's `share` names a metric. Then its mean does, without noise, in two digits: a
share with all its digits is a fraction that says how many records it is of.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from typing import TYPE_CHECKING

import torch

from client.foreign import foreign
from client.trial import one_a_record
from privacy.failures import sentence
from privacy.storage import make_folder, private
from transport.reports import LARGEST_METRIC

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from client.checkpoint import Checkpoint
    from client.site import Site
    from client.study import Study
    from privacy.manifest import Manifest
    from privacy.policy import Policy
    from privacy.update import Model

log = logging.getLogger("cloister.agent")

FOLDER = "metrics"
_MOST_RECORDS = 4096  # so that looking takes less time than training
_TAIL = 1 << 16  # bytes: the last rounds' lines
_BATCH = 256  # records at a time, unless `physical_batch` says otherwise


def look(site: Site, manifest: Manifest, checkpoint: Checkpoint) -> dict[str, float]:
    """Return the means of loss and metrics of a round's model, and write them down; nothing if that fails.

    Whatever goes wrong, a bug in the task's metrics or a full disk, stands in the log; the round goes on.
    """
    settings = manifest.settings
    if not settings.takes_steps:
        return {}
    try:
        study = site.study(settings.task)
        batch = site.settings.training.physical_batch or _BATCH
        count, found = _means(study, site.models.result(settings, checkpoint), settings.model_seed, batch)
        if count:
            path = site.place.folder / FOLDER / f"{settings.name}-{checkpoint.run[:8]}.jsonl"
            _append(path, checkpoint, count, found)
            said = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            log.info("round %d of %d: %s on %d held-out records", checkpoint.round, settings.rounds, said, count)
    except Exception as error:
        said = sentence(error)
        log.warning("round %d: not tried on held-out records, and the run goes on: %s", checkpoint.round, said)
        log.debug("round %d", checkpoint.round, exc_info=error)
        return {}
    return found


def shared(found: Mapping[str, float], policy: Policy) -> dict[str, float]:
    """Return what the policy lets out of these means, in two digits."""
    rounded = {name: float(f"{found[name]:.2g}") for name in policy.metrics if name in found}
    return {name: value for name, value in rounded.items() if abs(value) <= LARGEST_METRIC}


def _means(study: Study, model: Model, seed: int, batch: int) -> tuple[int, dict[str, float]]:
    """Return over how many held-out records, evenly taken, and the mean of each metric."""
    inputs, targets = study.held_out
    step = max(1, math.ceil(len(inputs) / _MOST_RECORDS))
    inputs, targets = inputs[::step], targets[::step]
    count, sums = len(inputs), dict[str, float]()
    if not count:
        return 0, {}
    module = study.load_into(study.module(seed), model)
    module.eval()
    with torch.no_grad():
        for start in range(0, count, batch):
            part = targets[start : start + batch]
            with foreign(study.name, "loss() or metrics() of held-out records"):
                outputs = module(inputs[start : start + batch])
                values = {"loss": float(study.task.loss(outputs, part)) * len(part)}
                measured = one_a_record(study.task.metrics(outputs, part), len(part))
            values |= {name: float(each.sum()) for name, each in measured.items()}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + value
    return count, {name: value / count for name, value in sums.items()}


def _append(path: Path, checkpoint: Checkpoint, count: int, found: Mapping[str, float]) -> None:
    """Add a round's line, unless it stands there: a sum may be delivered again."""
    make_folder(path.parent)
    metrics = {name: value if math.isfinite(value) else None for name, value in found.items()}
    entry = {"round": checkpoint.round, "time": round(time.time(), 3), "model": checkpoint.digest}
    line = json.dumps({**entry, "records": count, "metrics": metrics}, allow_nan=False)
    with open(path, "a+b", opener=private) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        kept = file.read()
        whole, _, torn = kept.rpartition(b"\n")  # by a crash
        if f'{{"round": {checkpoint.round}, '.encode() not in whole:
            file.write(b"\n" * bool(torn) + line.encode() + b"\n")
