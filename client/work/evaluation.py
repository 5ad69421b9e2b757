"""How good a model is, told in a way that costs what it tells: noisy counts over the sites' held-out records.

In a run with `[evaluation]`, each held-out record gives a vector

    1, its metrics clamped to 0 … 1, and, if the run asks for it, its loss clamped to 0 … `loss_bound` over that bound

divided by the root of its length in numbers, so that no record changes the sum by more than 1 in L2. With N(0, σ²) on
each number it is one step of the Gaussian mechanism without sampling, as in a survey. Held-out records were never
trained on: what is told about them is charged to a ledger of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

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
    """One task at one site: what runs do with it that hold a model against records that it has not seen."""

    def __init__(self, study: Study, site: SiteContext) -> None:
        super().__init__(site)
        self._study = study

    def count(self) -> int:
        """Return how many records are evaluated on."""
        self._study.check_usable()
        return len(self._study.held_out[0])

    def check_records(self, settings: RunSettings) -> None:
        """Check that there are records to evaluate on, and that the task can use each of them and has the metrics."""
        study = self._study
        self._site.check_count(len(study.held_out[0]), "to evaluate on")
        study.check_usable()
        study.check_metrics(_evaluation(settings).metrics)

    def layout(self, settings: RunSettings) -> Layout:
        """Names of the sum's numbers: with the loss, its bound."""
        return Layout(tuple((name, (1,)) for name in ("count", *_asked(settings))))

    def start(self, settings: RunSettings) -> Model:
        """Return what the sum is added to: zeros. A site without the model, or the metrics, says so now.

        Raises:
            RefusedError: if this site does not have the model.
            TaskError: if the task does not have a metric.
        """
        self._study.start(settings)
        for name in _evaluation(settings).metrics:
            if name not in self._study.metrics:
                msg = f"{self._study.name} has no metric {name!r}; name others in [evaluation]"
                raise TaskError(msg)
        layout = self.layout(settings)
        return Model(np.zeros(layout.size, np.float32), layout)

    def release(self, manifest: Manifest, model: Model, randomness: Randomness) -> Update:
        """Add up the held-out records and the noise: `(m,)`, over the largest size that a site declares.

        To be called once the ledger has the charge: `Mechanism(σ, sample_rate=1, steps=1)`.
        """
        del model  # zeros
        return noised(self._total(manifest.settings), manifest, randomness)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Write down what the sum of these sites says."""
        settings = manifest.settings
        total, noise = read_sum(manifest, model, len(contributors))
        names = _asked(settings)
        total *= math.sqrt(1 + len(names))
        noise *= math.sqrt(1 + len(names))
        # Where noise hides whether there was anybody, a count of one keeps all below finite; the errors say the rest.
        count = max(float(total[0]), 1.0)
        found = {}
        for name, value in zip(names, total[1:], strict=True):
            asked = settings.evaluation
            top = (asked.loss_bound if asked and name.startswith("loss ") else None) or 1.0
            share = min(max(float(value) / count, 0.0), 1.0)
            error = noise * math.hypot(1.0, share) / count  # of a ratio of two noisy numbers
            found[name.partition(" ")[0]] = {"mean": _figure(top * share), "error": _figure(top * error)}
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
        inputs, targets = study.held_out
        total = np.zeros(self.layout(settings).size)
        if not len(inputs):
            return total
        module = study.load_into(study.module(settings.model_seed), study.start(settings))
        module.eval()
        with torch.no_grad():
            outputs = module(inputs)
            single = [(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(inputs))]
            columns = [torch.ones(len(inputs))]
            # Each record by itself, so that what is said of it depends on no other.
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
        msg = f"the run {settings.name} evaluates nothing"
        raise TaskError(msg)
    return settings.evaluation


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
