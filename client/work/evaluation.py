"""Evaluate a model with differential privacy: noisy sums of metrics over the sites' held-out records.

In a run with `[evaluation]`, each held-out record contributes the vector

    (1, its metrics clamped to 0 … 1, its loss clamped to 0 … `loss_bound` and divided by `loss_bound` if requested)

divided by the square root of its dimension, so that no record changes the sum by more than 1 in L2. With N(0, σ²) added
to each number, this is one step of the Gaussian mechanism without sampling, as in a survey. Held-out records are never
trained on, so releases about them are charged to a ledger of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.data.site_records import predictions
from client.work.sums import OneSum, noised, read_sum, write_report
from privacy.codec.update import Layout, Model
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Collection

    from client.context import SiteContext
    from client.work.training import Study
    from privacy.codec.update import Update
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import Evaluation, RunSettings


class HeldOutEvaluation(OneSum):
    """One task at one site, in runs that evaluate a model on held-out records."""

    def __init__(self, study: Study, site: SiteContext) -> None:
        super().__init__(site)
        self._study = study

    def count(self) -> int:
        """Return the number of records to evaluate on."""
        self._study.check_usable()
        return len(self._study.held_out)

    def check_records(self, settings: RunSettings) -> None:
        """Check that there are records to evaluate on, that the task can use each of them, and has the metrics."""
        study = self._study
        self._site.check_count(len(study.held_out), "to evaluate on")
        study.check_usable()
        study.check_metrics(_evaluation(settings).metrics)

    def layout(self, settings: RunSettings) -> Layout:
        """Return the names of the sum's numbers; the loss's name includes its bound."""
        return Layout(tuple((name, (1,)) for name in ("count", *_asked(settings))))

    def start(self, settings: RunSettings) -> Model:
        """Return zeros, to which the sum is added, having checked that the site has the model and the metrics.

        Raises:
            RefusedError: if this site lacks the model.
            TaskError: if the task lacks a metric.
        """
        self._study.start(settings)
        for name in _evaluation(settings).metrics:
            if name not in self._study.metrics:
                msg = f"{self._study.name} has no metric {name!r}; name others in [evaluation]"
                raise TaskError(msg)
        layout = self.layout(settings)
        return Model(np.zeros(layout.size, np.float32), layout)

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness) -> Update:
        """Sum the held-out records' vectors and the noise, `(m,)`, divided by the largest size that a site declares.

        Call it once the ledger has the charge: `Mechanism(σ, sample_rate=1, steps=1)`.
        """
        del number, model  # the only round; all zeros
        return noised(self._total(manifest.settings), manifest, randomness)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Write the report of these sites' sum."""
        settings = manifest.settings
        total, noise = read_sum(manifest, model, len(contributors))
        names = _asked(settings)
        total *= math.sqrt(1 + len(names))
        noise *= math.sqrt(1 + len(names))
        # If noise hides whether there were any records, a count of 1 keeps the figures finite; their errors are large.
        count = max(float(total[0]), 1.0)
        found = {}
        for name, value in zip(names, total[1:], strict=True):
            asked = settings.evaluation
            top = (asked.loss_bound if asked and name.startswith("loss ") else None) or 1.0
            fraction = min(max(float(value) / count, 0.0), 1.0)
            error = noise * math.hypot(1.0, fraction) / count  # error of a ratio of two noisy numbers
            found[name.partition(" ")[0]] = {"mean": _figure(top * fraction), "error": _figure(top * error)}
        write_report(self._site.place.folder, manifest, run, contributors, {
            "task": settings.task,
            "model": settings.start.model if settings.start else "",
            "count": _figure(float(total[0])),
            "count_error": _figure(noise),
            "metrics": found,
        })  # fmt: skip

    def _total(self, settings: RunSettings) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Sum the records' vectors, `(m,)`."""
        study, asked = self._study, _evaluation(settings)
        total = np.zeros(self.layout(settings).size)
        if not len(study.held_out):
            return total
        module = study.load_into(study.module(settings.model_seed), study.start(settings))
        module.eval()
        with torch.no_grad():
            outputs, targets = predictions(module, study.held_out, study.at_once)
            single = [(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
            columns = [torch.ones(len(targets))]
            # Each record separately, so that its values depend on no other record.
            known = [study.task.metrics(*one) for one in single]
            for name in asked.metrics:
                values = torch.stack([each[name].reshape(()) for each in known]).double().cpu()
                columns.append(torch.nan_to_num(values, nan=0.0).clamp(0, 1))
            if asked.loss_bound is not None:
                losses = torch.stack([study.task.loss(*one) for one in single]).double().cpu()
                losses = torch.nan_to_num(losses, nan=asked.loss_bound)
                columns.append(losses.clamp(0, asked.loss_bound) / asked.loss_bound)
        for place, column in enumerate(columns):
            total[place] = float(column.sum())
        return total / math.sqrt(len(columns))


def _asked(settings: RunSettings) -> tuple[str, ...]:
    asked = _evaluation(settings)
    return (*asked.metrics, *(() if asked.loss_bound is None else (f"loss 0.0 {asked.loss_bound!r}",)))


def _evaluation(settings: RunSettings) -> Evaluation:
    if settings.evaluation is None:
        msg = f"the run {settings.name} does not evaluate"
        raise TaskError(msg)
    return settings.evaluation


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
