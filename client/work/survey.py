"""Surveys: statistics that a consortium asks for before it trains, from a class with public ranges.

    class Measurements(Survey):
        columns = {"age": (0, 100), "pressure": (60, 240)}     # public ranges; values are clamped to them
        classes = (0, 1)                                       # values of the label; leave out if there is none
        def load(self, path):  return values, labels           # of one site, unscaled: (n, 2) and (n,)

A run with `[statistics]` names it as `module:Class`. Like a task, it is imported only if the site's policy lists it.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from client.data.own_records import people
from client.data.people import divide
from client.task.task import import_class, make
from client.task.user_code import foreign
from client.work.sums import OneSum, noised, read_sum, write_report
from privacy.analytics import figures
from privacy.analytics.statistics import Column, Form
from privacy.codec.update import Model
from privacy.errors import DataError, TaskError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from client.context import SiteContext
    from client.data.inputs import Persons
    from privacy.codec.update import Layout, Update
    from privacy.noise.randomness import Randomness
    from privacy.run.manifest import Manifest
    from privacy.run.settings import RunSettings

log = logging.getLogger("cloister.agent")


class Survey(ABC):
    """The columns of a survey, and how a site reads them. Instances hold no data."""

    columns: ClassVar[Mapping[str, tuple[float, float]]]
    """Each column's public range, which must not come from the data."""

    classes: ClassVar[tuple[float, ...]] = ()
    """The values that the label may have."""

    @abstractmethod
    def load(self, path: Path) -> tuple[ArrayLike, ArrayLike] | tuple[ArrayLike, ArrayLike, Persons]:
        """Read one site's records from `path`, as they were measured.

        Returns:
            Values `(n, columns)`, in the order of `columns`, and labels `(n,)`; arrays or tensors. The persons `(n,)`
            whom the records are about may follow, as whole numbers or texts, as in a task.

        Raises:
            DataError: if a record cannot be used; say which line, and how to fix it.
        """


def import_survey(name: str) -> Survey:
    """Import `module:Class` and make an instance.

    Raises:
        TaskError: if there is no such module or class, it is not a `Survey`, or its columns or classes are invalid.
    """
    imported = import_class(name)
    if not issubclass(imported, Survey):
        msg = f"{name!r} is not a cloister.Survey, which a run with [statistics] needs; derive the class from it"
        raise TaskError(msg)
    survey = make(imported, name)
    try:
        ranges = [(float(low), float(high)) for low, high in survey.columns.values()]
        classes = {np.float32(value) for value in survey.classes}  # labels may have this precision
        sound = ranges and all(low < high and math.isfinite(high - low) for low, high in ranges)
        sound = sound and len(classes) == len(survey.classes) and all(map(math.isfinite, classes))
    except (AttributeError, TypeError, ValueError):
        sound = False
    if not sound:
        msg = (
            f"{name!r} needs columns = {{name: (low, high), …}} with one column or more, and distinct numbers as "
            "classes; correct the class"
        )
        raise TaskError(msg)
    return survey


class StatisticsQuery(OneSum):
    """One survey at one site, in runs that sum its records."""

    def __init__(self, name: str, site: SiteContext) -> None:
        super().__init__(site)
        self.name, self.survey = name, import_survey(name)

    def count(self) -> int:
        """Return the number of records to sum."""
        return len(self.records[0])

    def check_records(self, settings: RunSettings) -> None:
        """Check that there are records to sum."""
        del settings
        self._site.check_count(self.count(), "to add up")

    def form(self, settings: RunSettings) -> Form:
        """Return the statistics that a run asks for."""
        columns = tuple(Column(name, float(low), float(high)) for name, (low, high) in self.survey.columns.items())
        bins = settings.statistics.bins if settings.statistics else 0
        return Form(columns, tuple(map(float, self.survey.classes)), bins)

    def layout(self, settings: RunSettings) -> Layout:
        """Return the names and sizes of the sum's parts."""
        return self.form(settings).layout

    def start(self, settings: RunSettings) -> Model:
        """Return zeros, to which the sum is added."""
        layout = self.layout(settings)
        return Model(np.zeros(layout.size, np.float32), layout)

    @cached_property
    def records(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The site's records without the held-out ones: values `(n, d)` and labels `(n,)`.

        Raises:
            DataError: if the survey reads anything else.
        """
        path = self._site.records_path
        with foreign(self.name, f"load() of {path}", DataError):
            loaded: Any = self.survey.load(path)
        try:
            values, labels, *persons = loaded[:3]
            values, labels = (np.asarray(part, np.float64) for part in (values, labels))
        except (TypeError, ValueError, RuntimeError) as error:  # its message may quote a record
            msg = f"{path}: the survey did not read a table of numbers and its labels; correct its `load`"
            raise DataError(msg) from error
        self._check(path, values, labels)
        data = self._site.settings.data
        of_people = people(persons[0], len(values), self.name, path) if persons else None
        kept = divide(len(values), data.held_out, of_people, data.records_per_person)[0]
        return values[kept], labels.reshape(-1)[kept]

    def release(self, manifest: Manifest, number: int, model: Model, randomness: Randomness) -> Update:
        """Sum the records and the noise, `(m,)`, divided by the largest size that a site declares.

        Call it once the ledger has the charge: `Mechanism(σ, sample_rate=1, steps=1)`.
        """
        del number, model  # the only round; all zeros
        declared = manifest.settings.cohort.sizes[self._site.name]
        values, labels = self.records
        if len(values) > 2 * declared:
            # Only a local warning: a run must not fail because of the number of records, which would reveal it.
            log.warning("%d records, more than twice the declared %d; large sums may be clipped", len(values), declared)
        return noised(self.form(manifest.settings).total(values, labels), manifest, randomness)

    def opened(self, manifest: Manifest, run: str, model: Model, contributors: Collection[str]) -> None:
        """Write the report of these sites' sum."""
        form = self.form(manifest.settings)
        results = figures.read(form, *read_sum(manifest, model, len(contributors)))
        survey = {"survey": self.name, "bins": form.bins, **results}
        write_report(self._site.place.folder, manifest, run, contributors, survey)

    def _check(self, path: Path, values: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        """Refuse records of the wrong shape, with values that are not finite, or with unlisted labels."""
        names, classes = tuple(self.survey.columns), np.array(self.survey.classes, np.float32)
        if values.ndim != 2 or values.shape[1] != len(names) or labels.size != len(values):  # noqa: PLR2004 - rows
            msg = (
                f"{path}: the survey read values of shape {values.shape} and labels of shape {labels.shape}; it "
                f"needs (n, {len(names)}), with the columns {', '.join(names)}, and (n,)"
            )
            raise DataError(msg)
        if len(values) == 0:
            msg = f"{path}: the survey read no records; it needs at least one"
            raise DataError(msg)
        for row, column in np.argwhere(~np.isfinite(values)):
            msg = f"{path}: `{names[column]}` of record {row + 1} is not finite; correct the record, or leave it out"
            raise DataError(msg)
        for row in np.flatnonzero(~np.isin(labels.reshape(-1).astype(np.float32), classes)) if len(classes) else ():
            label, listed = labels.reshape(-1)[row], ", ".join(f"{value:g}" for value in classes)
            msg = f"{path}: the label of record {row + 1} is {label:g}; the survey's classes are {listed}"
            raise DataError(msg)
