"""Subgroups of a task's records, such as sex or bands of ages: the part of a task that says which a record is in.

    class Diagnosis(Task):
        subgroups = {"sex": ("female", "male"), "age": ("below 40", "40 to 64", "65 and above")}

        def subgroup_of(self, inputs, targets):
            return {"sex": inputs[:, 0], "age": torch.bucketize(inputs[:, 1], AGES)}

Names and values are public constants, the same at all sites. A run that evaluates asks for `by sex` among its metrics:
see `privacy.analytics.subgroups`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor

from privacy.analytics.subgroups import MOST_VALUES
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from client.data.inputs import Inputs

BY = "by "
"""How a run asks for a subgroup among its metrics: `by sex`."""

_LONGEST = 60  # characters of a name or value


class Subgrouped:
    """The part of a task that concerns its subgroups."""

    subgroups: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Columns of subgroups by name, each with its values: `{"sex": ("female", "male")}`."""

    @property
    def subgroup_values(self) -> dict[str, tuple[str, ...]]:
        """The values of each column of subgroups."""
        return {name: tuple(values) for name, values in self.subgroups.items()}

    def subgroup_of(self, inputs: Any, targets: Tensor) -> Mapping[str, Tensor]:  # noqa: ANN401 - in the form of the task's inputs
        """Return the place of each record's value in `subgroups`, from 0: `(n,)` for each column, by name.

        Each record's depends on that record alone.
        """
        del inputs, targets
        msg = "it has subgroups, but no subgroup_of(); write it, and return each record's place in each of them"
        raise TaskError(msg)


def check_subgroups(task: Subgrouped) -> None:
    """Check the subgroups that a task declares.

    Raises:
        TaskError: if they are not names with at least two different values.
    """
    if not isinstance(task.subgroups, dict):
        msg = 'its subgroups are no table of names; write for example subgroups = {"sex": ("female", "male")}'
        raise TaskError(msg)
    for name, values in task.subgroup_values.items():
        if not all(_is_name(text) for text in (name, *values)):
            msg = f"its subgroups {name!r} have a name or value that is not a text of 1 to {_LONGEST} characters"
            raise TaskError(msg)
        if not 2 <= len(values) <= MOST_VALUES or len(set(values)) < len(values):  # noqa: PLR2004 - two to compare
            msg = f"its subgroups {name!r} have {len(values)} values; declare 2 to {MOST_VALUES} different ones"
            raise TaskError(msg)


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text == text.strip() and 0 < len(text) <= _LONGEST and text.isprintable()


def places_of(task: Subgrouped, name: str, inputs: Inputs, targets: Tensor) -> NDArray[np.intp]:
    """Return the place of each record's value in a column of subgroups, `(n,)`; -1 where it is none.

    Raises:
        TaskError: if `subgroup_of` does not return one number per record.
    """
    answer: object = task.subgroup_of(inputs, targets)
    places: object = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(places, Tensor) or tuple(places.shape) != (len(targets),):
        what = f"of shape {tuple(places.shape)}" if isinstance(places, Tensor) else f"a {type(places).__name__}"
        msg = f"its subgroup_of() returns {what} for {name!r} of {len(targets)} records; return one place per record"
        raise TaskError(msg)
    numbers, count = places.detach().double().cpu().numpy(), len(task.subgroup_values[name])
    right = (numbers >= 0) & (numbers < count) & (numbers == np.floor(numbers))
    return np.where(right, numbers, -1).astype(np.intp)
