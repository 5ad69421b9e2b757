"""Several records of one person: bound what a person adds, and keep each person on one side of the held-out split.

`load` may return, after the records, the person whom each record is about: a whole number or a text that means
something only at this site. Of each person, the first `records_per_person` records are used, in the order in which
`load` returns them; which these are depends on no other person. Nothing about persons leaves the site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from client.data.held_out import split_held_out

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class People:
    """The persons whom records are about, numbered from 0 in the order of their first records."""

    of: NDArray[np.intp]  # (n,): the person of each record

    @classmethod
    def named(cls, value: object) -> People | None:
        """Return persons from what `load` returned: whole numbers or texts `(n,)`; None if it is anything else.

        >>> People.named(["ann", "bob", "ann"]).of
        array([0, 1, 0])
        """
        try:
            names = np.asarray(value.cpu().numpy() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError):
            return None
        if names.ndim != 1 or (names.size and names.dtype.kind not in "iuSUO"):
            return None
        if names.dtype.kind == "O" and not all(isinstance(name, str | int) for name in names):
            return None
        numbers: dict[object, int] = {}
        of = [numbers.setdefault(name, len(numbers)) for name in names.tolist()]
        return cls(np.array(of, np.intp))

    def first(self, most: int) -> NDArray[np.intp]:
        """Return the places of each person's first `most` records, ascending.

        >>> People.named(["ann", "bob", "ann", "ann"]).first(2)
        array([0, 1, 2])
        """
        order = np.argsort(self.of, kind="stable")
        starts = np.searchsorted(self.of[order], self.of[order])  # where each person's records begin
        return np.sort(order[np.arange(len(order)) - starts < most])


def divide(
    count: int, fraction: float, people: People | None = None, most: int = 1
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose which of a file's records are trained on and which are held out; see `split_held_out`.

    Args:
        count: the number of records.
        fraction: the fraction of records, or of persons if they are known, to hold out.
        people: the persons whom the records are about; all of a person's records are on the same side.
        most: how many records of each person to use, if persons are known.

    Returns:
        Ascending places of the records to train on and of those to hold out.

    >>> divide(4, 0.5, People.named(["ann", "bob", "ann", "ann"]), most=2)
    (array([1]), array([0, 2]))
    """
    if people is None:
        return split_held_out(count, fraction)
    kept = people.first(most)
    sides = split_held_out(int(people.of.max(initial=-1)) + 1, fraction)
    used, held_out = (kept[np.isin(people.of[kept], side)] for side in sides)
    return used, held_out
