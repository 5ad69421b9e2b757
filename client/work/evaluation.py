"""Evaluate a model with differential privacy: noisy sums of metrics over the sites' held-out records.

In a run with `[evaluation]`, each held-out record contributes the vector

    (1, its metrics clamped to 0 … 1, its loss clamped to 0 … `loss_bound` and divided by `loss_bound` if requested)

and, for metrics that the task only names, the blocks of `privacy.analytics.scores`, and for each column of subgroups
those of `privacy.analytics.subgroups`, each of norm at most 1. All of it is divided by the square root of the number of
single numbers and blocks, so that no record changes the sum by more than 1 in L2. With N(0, σ²) added to each number,
this is one step of the Gaussian mechanism without sampling, as in a survey. Held-out records are never trained on, so
releases about them are charged to a ledger of their own.

Each site also computes the named metrics exactly, for itself alone, into `metrics/NAME-RUN.json`.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from client.data.fitness import example_of
from client.data.inputs import call
from client.data.site_records import predictions
from client.task.scoring import as_numbers
from client.task.subgrouping import BY, places_of
from client.task.user_code import foreign
from client.work.scored import Scores
from client.work.subgrouped import by_subgroup, held_out_places
from client.work.sums import OWN, OneSum, noised, read_sum, write_report
from privacy.analytics.readings import read
from privacy.analytics.scores import Form
from privacy.codec.update import Layout, Model
from privacy.config import did_you_mean
from privacy.errors import DataError, TaskError
from privacy.failures import sentence
from privacy.storage import make_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray
    from torch import nn

    from client.context import SiteContext
    from client.data.inputs import Batch
    from client.work.training import Study
    from privacy.analytics.subgroups import BySubgroup
    from privacy.codec.update import Update
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import Evaluation, RunSettings


log = logging.getLogger("cloister.agent")

MOST_CLASSES = 32  # of metrics that are read from scores


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
        metrics = self._requested(settings)
        study.check_metrics(metrics.means)
        if metrics.form or metrics.by:
            self._check_scores()
        self._check_places(metrics.by)

    def _check_scores(self) -> None:
        """Check that the untrained model gives every held-out record a score.

        Raises:
            DataError: names the record for which it does not.
        """
        study, path = self._study, self._site.records_path
        if not study.task.named_metrics:
            return
        module = study.module(0).to(self._site.device)
        with foreign(study.name, f"scored() of the records in {path}", DataError), torch.no_grad():
            for start, (inputs, targets) in study.held_out.in_order(study.at_once):
                outputs = call(module, inputs)
                for row in range(len(targets)):
                    one = slice(row, row + 1)
                    scores, _ = as_numbers(study.task, outputs[one], targets[one])
                    if not np.isfinite(scores).all():
                        msg = (
                            f"{path}: {study.name} cannot evaluate held-out record {start + row + 1}: its score is not "
                            "finite; correct the record, or leave it out"
                        )
                        raise DataError(msg)

    def _check_places(self, by: tuple[BySubgroup, ...]) -> None:
        """Check that the task finds a value for every held-out record in each column of subgroups.

        Raises:
            DataError: names the record for which it does not.
        """
        study, path = self._study, self._site.records_path
        with foreign(study.name, f"subgroup_of() of the records in {path}", DataError):
            for column in by:
                if len(missing := np.flatnonzero(held_out_places(study, column.name) < 0)):
                    msg = (
                        f"{path}: {study.name} cannot evaluate held-out record {missing[0] + 1}: its {column.name} is "
                        f"none of {', '.join(column.values)}; correct the record, or leave it out"
                    )
                    raise DataError(msg)

    def layout(self, settings: RunSettings) -> Layout:
        """Return the names of the sum's numbers; the loss's name and the blocks' include the public constants."""
        metrics = self._requested(settings)
        singles = tuple((name, (1,)) for name in ("count", *metrics.singles))
        form = metrics.form.shapes if metrics.form else ()
        return Layout((*singles, *form, *(shape for by in metrics.by for shape in by.shapes)))

    def start(self, settings: RunSettings) -> Model:
        """Return zeros, to which the sum is added, having checked that the site has the model and the metrics.

        Raises:
            RefusedError: if this site lacks the model.
            TaskError: if the task lacks a metric.
        """
        self._study.start(settings)
        layout = self.layout(settings)
        return Model(np.zeros(layout.size, np.float32), layout)

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness) -> Update:
        """Sum the held-out records' vectors and the noise, `(m,)`, divided by the largest size that a site declares.

        Call it once the ledger has the charge: `Mechanism(σ, sample_rate=1, steps=1)`.
        """
        del number, model  # the only round; all zeros
        return noised(self._total(manifest.settings), manifest, randomness)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Write the report of these sites' sum, and this site's own exact figures."""
        settings = manifest.settings
        total, noise = read_sum(manifest, model, len(contributors))
        metrics = self._requested(settings)
        total *= math.sqrt(metrics.parts)
        noise *= math.sqrt(metrics.parts)
        # If noise hides whether there were any records, a count of 1 keeps the figures finite; their errors are large.
        count = max(float(total[0]), 1.0)
        known: dict[str, dict[str, Any]] = {}
        for name, value in zip(metrics.singles, total[1:], strict=False):
            top = metrics.loss_bound if name.startswith("loss ") else 1.0
            fraction = min(max(float(value) / count, 0.0), 1.0)
            error = noise * math.hypot(1.0, fraction) / count  # error of a ratio of two noisy numbers
            known[name.partition(" ")[0]] = {"mean": _figure(top * fraction), "error": _figure(top * error)}
        blocks, parts = _divided(metrics, total[1 + len(metrics.singles) :])
        if metrics.form:
            known |= read(metrics.form, np.concatenate([total[:1], blocks]), noise)
        subgroups = {by.name: by.read(part, noise) for by, part in zip(metrics.by, parts, strict=True)}
        write_report(self._site.place.folder, manifest, run, contributors, {
            "task": settings.task,
            "model": settings.start.model if settings.start else "",
            "count": _figure(float(total[0])),
            "count_error": _figure(noise),
            "metrics": known,
            **({"subgroups": subgroups} if subgroups else {}),
        })  # fmt: skip
        for name, figures in known.items():
            log.info("over %d sites: %s", len(contributors), in_words(name, figures))
        for column, table in subgroups.items():
            for name, figures in table["gaps"].items():
                log.info("over %d sites by %s: %s", len(contributors), column, in_words(name, figures))
        if metrics.form or metrics.by:
            self._write_own(settings, run, metrics.by)

    def _write_own(self, settings: RunSettings, run: str, by: tuple[BySubgroup, ...]) -> None:
        """Compute the metrics that the task names from this site's records alone; a failure is only logged."""
        study, scores = self._study, Scores(self._study.task)
        try:
            scores.add(*predictions(self._module(settings), study.held_out, study.at_once))
            figures = scores.figures(study.prediction) if study.prediction else {}
            path = self._site.place.folder / OWN / f"{settings.name}-{run[:8]}.json"
            make_folder(path.parent)
            report = {"run": run, "records": len(study.held_out), "metrics": figures}
            if by and figures:
                report["subgroups"] = {
                    column.name: column.exact(held_out_places(study, column.name), *scores.joined()) for column in by
                }
            write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            for name, figure in figures.items():
                log.info("this site alone: %s", in_words(name, figure))
        except Exception as error:
            log.warning("exact metrics of this site were not computed; the run is complete: %s", sentence(error))
            log.debug("evaluation", exc_info=error)

    def _module(self, settings: RunSettings) -> nn.Module:
        """Return the model to evaluate."""
        study = self._study
        return study.load_into(study.module(settings.model_seed), study.start(settings)).eval()

    def _total(self, settings: RunSettings) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """Sum the records' vectors, `(m,)`."""
        study, metrics = self._study, self._requested(settings)
        if not len(study.held_out):
            return np.zeros(self.layout(settings).size)
        module = self._module(settings)
        with torch.no_grad():
            outputs, targets = predictions(module, study.held_out, study.at_once)
            single = [(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
            columns = [torch.ones(len(targets))]
            # Each record separately, so that its values depend on no other record.
            known = [study.task.metrics(*record) for record in single]
            for name in metrics.means:
                values = torch.stack([metrics[name].reshape(()) for metrics in known]).double().cpu()
                columns.append(torch.nan_to_num(values, nan=0.0).clamp(0, 1))
            if metrics.has_loss:
                losses = torch.stack([study.task.loss(*record) for record in single]).double().cpu()
                losses = torch.nan_to_num(losses, nan=metrics.loss_bound)
                columns.append(losses.clamp(0, metrics.loss_bound) / metrics.loss_bound)
            total = np.array([float(column.sum()) for column in columns])
            if metrics.form or metrics.by:
                scores = Scores(study.task)
                for record in single:
                    scores.add(*record)
                blocks = [metrics.form.total(*scores.joined())] if metrics.form else []
                parts = [by.total(held_out_places(study, by.name), *scores.joined()) for by in metrics.by]
                total = np.concatenate([total, *blocks, *parts])
        return total / math.sqrt(metrics.parts)

    def _requested(self, settings: RunSettings) -> _Requested:
        """Return what a run asks for.

        Raises:
            TaskError: if the task lacks a metric.
        """
        study, evaluation = self._study, _evaluation(settings)
        others = tuple(name for name in evaluation.metrics if name not in study.metrics)
        names = tuple(name for name in others if not name.startswith(BY))
        for name in names:
            if name not in study.task.named_metrics:
                has = sorted({*study.metrics, *study.task.named_metrics})
                near = did_you_mean(name, has) or "name others in [evaluation]"
                msg = f"{study.name} has no metric {name!r}; {near}"
                raise TaskError(msg)
        form = Form(study.prediction, names) if names and study.prediction else None
        if form and form.prediction.classes > MOST_CLASSES and {"confusion", "times"} & set(form.blocks):
            msg = (
                f"{study.name} predicts {form.prediction.classes} classes or intervals; an evaluation counts "
                f"{MOST_CLASSES} at most: leave out {', '.join(names)} in [evaluation]"
            )
            raise TaskError(msg)
        by = tuple(self._by(name.removeprefix(BY), names) for name in others if name.startswith(BY))
        means = tuple(name for name in evaluation.metrics if name not in others)
        return _Requested(means, evaluation.loss_bound, form, by)

    def _by(self, name: str, metrics: tuple[str, ...]) -> BySubgroup:
        """Return what is measured for each value of a column of subgroups.

        Raises:
            TaskError: if the task has no such column, names no metric, or does not say where its own records belong.
        """
        study, values = self._study, self._study.task.subgroup_values
        if name not in values:
            near = did_you_mean(name, values)
            msg = f"{study.name} has no subgroups {name!r}; {near or 'declare them in its `subgroups`'}"
            raise TaskError(msg)
        if study.prediction is None:
            msg = f"{study.name} names no metrics, so there is nothing to compare by {name}; name some in its `metrics`"
            raise TaskError(msg)
        with foreign(study.name, "subgroup_of()"):
            if (places_of(study.task, name, *self._example) < 0).any():
                msg = f"{study.name}: its example has a record whose {name} is none of {', '.join(values[name])}"
                raise TaskError(msg)
        return by_subgroup(study, name, study.prediction, metrics)

    @cached_property
    def _example(self) -> Batch:
        return example_of(self._study.task)


def _divided(metrics: _Requested, sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Divide the blocks of a sum into those of all records and those of each column of subgroups."""
    sizes = [by.size for by in metrics.by]
    blocks, *parts = np.split(sums, np.cumsum([sums.size - sum(sizes), *sizes])[:-1])
    return blocks, parts


@dataclass(frozen=True)
class _Requested:
    """What a run asks for: means of metrics, the loss's bound, metrics that are read from scores, and subgroups."""

    means: tuple[str, ...]
    bound: float | None
    form: Form | None
    by: tuple[BySubgroup, ...] = ()

    @property
    def has_loss(self) -> bool:
        return self.bound is not None

    @property
    def loss_bound(self) -> float:
        return self.bound or 1.0

    @property
    def singles(self) -> tuple[str, ...]:
        """The names of the single numbers after the count."""
        return (*self.means, *(() if self.bound is None else (f"loss 0.0 {self.bound!r}",)))

    @property
    def parts(self) -> int:
        """The squared norm of a record's vector, before the division: count, single numbers, and blocks."""
        return 1 + len(self.singles) + (len(self.form.blocks) if self.form else 0) + sum(by.parts for by in self.by)


def in_words(name: str, figures: Mapping[str, Any]) -> str:
    """Return a metric in words, on one line.

    >>> in_words("auc", {"value": 0.957, "error": 0.0119, "bins": 0.002})
    'auc 0.957 ± 0.012, bins ± 0.002'
    """
    if "counts" in figures:
        rows = "; ".join(" ".join(f"{count:.0f}" for count in row) for row in figures["counts"])
        return f"{name} [{rows}]" + (f" ± {figures['error']:.0f}" if "error" in figures else "")
    value = figures.get("value", figures.get("mean"))
    if value is None:
        return f"{name} undefined: {figures['reason']}"
    error = f" ± {figures['error']:.3f}" if "error" in figures else ""
    return f"{name} {value:.3f}{error}" + (f", bins ± {figures['bins']:.3f}" if "bins" in figures else "")


def _evaluation(settings: RunSettings) -> Evaluation:
    if settings.evaluation is None:
        msg = f"the run {settings.name} does not evaluate"
        raise TaskError(msg)
    return settings.evaluation


def _figure(value: float) -> float:
    return float(f"{value:.6g}")
