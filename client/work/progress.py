"""Measure the model after each round on this site's held-out records, for this site alone.

Each run has a file, `metrics/NAME-RUN.jsonl`, with a line of JSON for each round whose sum the site got in time: round,
digest of the model, number of records, and the mean of the loss and of each metric. It holds no record and no tensor.
If the task keeps parameters at the site, the means are those of the shared model with the parameters that the task
makes; `personal` has the means with the site's own.

Nothing of it leaves the site, unless the policy's `disclose` names a metric. Then its mean does, without noise,
rounded to two digits: all digits of a proportion would reveal the number of records.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from client.work.sums import OWN
from privacy.failures import sentence
from privacy.log_file import opened_log
from privacy.storage import make_folder
from transport.reports import LARGEST_METRIC

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from client.round.admission import AdmittedRun
    from client.state.checkpoint import Checkpoint
    from privacy.codec.update import Model
    from privacy.run.policy import Policy

log = logging.getLogger("cloister.agent")

_TAIL = 1 << 16  # bytes: the last rounds' lines


def look(admitted: AdmittedRun, checkpoint: Checkpoint) -> dict[str, float]:
    """Return and write the mean loss and metrics of a round's model; return nothing if that fails.

    A failure, such as a bug in the task's metrics or a full disk, is logged; the round goes on.
    """
    site, settings = admitted.site, admitted.settings
    try:
        shared_model = replace(site.models.result(settings, checkpoint), local={})
        count, metrics = admitted.work.measure(settings, shared_model)
        personal = _of_personal(admitted, checkpoint.run, shared_model)
        if count:
            path = site.place.folder / OWN / f"{settings.name}-{checkpoint.run[:8]}.jsonl"
            _append(path, checkpoint, count, metrics, personal)
            _report(admitted, checkpoint, metrics, personal)
            summary = f"{listed(metrics)} on {count} held-out records"
            if personal:
                summary += f"; with this site's own parameters {listed(personal)}"
            log.info("round %d of %d: %s", checkpoint.round, settings.rounds, summary)
    except Exception as error:
        reason = sentence(error)
        log.warning("round %d: not evaluated on held-out records; the run continues: %s", checkpoint.round, reason)
        log.debug("round %d", checkpoint.round, exc_info=error)
        return {}
    return metrics


def _report(
    admitted: AdmittedRun, checkpoint: Checkpoint, metrics: Mapping[str, float], personal: Mapping[str, float]
) -> None:
    """Show a round's means, and the ε spent, where the site's `[report]` says."""
    if admitted.site.settings.report is None:
        return
    values = {f"metrics/{name}": value for name, value in metrics.items()}
    values |= {f"personal/{name}": value for name, value in personal.items()}
    values["epsilon/spent"] = admitted.ledger.spent(admitted.limit.delta)
    name, settings = f"{admitted.settings.name}-{admitted.site.name}", admitted.settings
    admitted.site.tracking.log(checkpoint.run, name, checkpoint.round, values)
    if checkpoint.round == settings.rounds:
        admitted.site.tracking.end(checkpoint.run, well=True)


def _of_personal(admitted: AdmittedRun, run: str, model: Model) -> dict[str, float]:
    """Return the means of a round's model with the parameters that stay at this site; none if the task has none."""
    if not model.layout.local:
        return {}
    personal = admitted.site.personal(admitted.manifest, run, model)
    return admitted.work.measure(admitted.settings, personal)[1]


def listed(metrics: Mapping[str, float]) -> str:
    """Return metrics in words, on one line."""
    return ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())


def shared(metrics: Mapping[str, float], policy: Policy) -> dict[str, float]:
    """Return the means that the policy shares, rounded to two digits."""
    rounded = {name: float(f"{metrics[name]:.2g}") for name in policy.metrics if name in metrics}
    return {name: value for name, value in rounded.items() if abs(value) <= LARGEST_METRIC}


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _append(
    path: Path, checkpoint: Checkpoint, count: int, metrics: Mapping[str, float], personal: Mapping[str, float]
) -> None:
    entry: dict[str, object] = {"time": round(time.time(), 3), "model": checkpoint.digest}
    entry |= {"records": count, "metrics": finite(metrics)}
    if personal:
        entry["personal"] = finite(personal)
    add_line(path, {"round": checkpoint.round}, entry)


def add_line(path: Path, key: Mapping[str, object], entry: Mapping[str, object]) -> None:
    """Add an entry to a file of lines of JSON unless it has one with this key: a sum may be delivered again."""
    make_folder(path.parent)
    line = json.dumps({**key, **entry}, allow_nan=False)
    with opened_log(path) as file:
        whole, _, torn = file.data[-_TAIL:].rpartition(b"\n")  # a crash may have torn the last line
        if f"{json.dumps(key)[:-1]}, ".encode() not in whole:
            file.append(b"\n" * bool(torn) + line.encode() + b"\n", sync=False)


def finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as JSON has them: None if not finite."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
