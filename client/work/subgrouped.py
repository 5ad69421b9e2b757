"""What is measured of the subgroups of a task's held-out records, and which subgroup each record is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.data.inputs import rows
from client.task.subgrouping import places_of
from privacy.analytics.scores import Form
from privacy.analytics.subgroups import BySubgroup

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.work.training import Study
    from privacy.analytics.scores import Prediction


def by_subgroup(study: Study, name: str, prediction: Prediction, metrics: tuple[str, ...]) -> BySubgroup:
    """Return what is measured in a column of subgroups: these metrics and, of classes, the counts that rates need."""
    more = ("confusion",) if prediction.family == "classes" and "confusion" not in metrics else ()
    return BySubgroup(name, study.task.subgroup_values[name], Form(prediction, metrics + more), metrics)


def held_out_places(study: Study, name: str) -> NDArray[np.intp]:
    """Return the place of each held-out record's value in a column of subgroups, `(n,)`; -1 where it is none.

    Raises:
        TaskError: if the task does not return one place per record.
    """
    # Each record separately, so that its value depends on no other record.
    places = [
        places_of(study.task, name, rows(inputs, slice(row, row + 1)), targets[row : row + 1])
        for _, (inputs, targets) in study.held_out.in_order(study.at_once)
        for row in range(len(targets))
    ]
    return np.concatenate([np.zeros(0, np.intp), *places])
