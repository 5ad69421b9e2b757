"""Which records are held out depends on nothing but how many there are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.data.held_out import split_held_out


@given(st.integers(0, 2000), st.floats(0, 1))
def test_every_record_is_either_trained_on_or_held_out(n: int, fraction: float) -> None:
    train, held_out = split_held_out(n, fraction)
    assert len(held_out) == round(n * fraction)
    assert sorted([*train, *held_out]) == list(range(n))
    assert all(np.diff(train) > 0)
    assert all(np.diff(held_out) > 0)


def test_the_held_out_part_is_the_same_in_every_version() -> None:
    # A golden value: were it to change, records that a model was trained on would be used to judge it.
    assert split_held_out(20, 0.2)[1].tolist() == [2, 9, 16, 18]


@given(st.integers(1, 1000))
def test_few_records_change_sides_when_a_file_grows_by_one(n: int) -> None:
    before, after = (set(split_held_out(size, 0.2)[1].tolist()) for size in (n, n + 1))
    assert len(before ^ after) <= 2
