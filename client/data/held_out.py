"""Choose the records that training never sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SEED = 1


def split_held_out(n: int, fraction: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose which of a file's n records are held out: the same ones in every run, whatever they contain.

    The choice depends only on n and on a record's place in the file, so it reveals nothing about any record. Removing a
    record from the middle of the file moves the later ones: for add-or-remove-one adjacency, think of the removed
    record as leaving its place empty.

    Args:
        n: the number of records.
        fraction: the fraction to hold out, from 0 to 1.

    Returns:
        Ascending indices `(n - round(n * fraction),)` to train on and `(round(n * fraction),)` to hold out.

    >>> split_held_out(10, 0.2)[1]
    array([2, 9])
    """
    # Raw bits, because NumPy promises a stable stream only for these, not for Generator.permutation. Each place has its
    # own key, so that few records change sides when a file grows.
    keys = np.random.PCG64(_SEED).random_raw(n)
    order = np.argsort(keys, kind="stable")
    held_out = round(n * fraction)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
