"""Numbers of any type become those of an example, and what a type does not have is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from client.task.conversions import changes, converted
from privacy.errors import DataError

CLASSES = torch.zeros(4).long()


@pytest.mark.parametrize(
    ("values", "like", "wanted"),
    [
        ([1.0, 0.0], CLASSES, torch.tensor([1, 0])),
        (np.array([[1], [0]], np.uint32), CLASSES, torch.tensor([1, 0])),
        (np.array([1, 0], ">f8"), torch.zeros(4, 1), torch.tensor([[1.0], [0.0]])),
        (np.array([1, 0], object), torch.zeros(4), torch.tensor([1.0, 0.0])),
        (np.array([1, 0], np.longdouble), torch.zeros(4), torch.tensor([1.0, 0.0])),
        (torch.tensor([1, 0]), torch.zeros(4).bool(), torch.tensor([True, False])),
    ],
)
def test_numbers_of_any_type_are_converted(values: object, like: Tensor, wanted: Tensor) -> None:
    taken = converted(values, like, "targets")
    assert isinstance(taken, Tensor)
    assert torch.equal(taken, wanted)
    assert taken.dtype == wanted.dtype


@pytest.mark.parametrize(
    ("values", "like", "message"),
    [
        ([0.5, 1.0], CLASSES, "the targets of record 1 are not whole numbers in the range of its type, but example"),
        ([1, np.nan], CLASSES, "the targets of record 2 are not whole"),
        ([1, 300], CLASSES.byte(), "the targets of record 2 are not whole"),
        ([1, 2], CLASSES.bool(), "the targets of record 2 are not 0 or 1"),
        (["a"], CLASSES, "the targets are no numbers"),
        ([object()], CLASSES, "the targets cannot be read as numbers"),
    ],
)
def test_what_a_type_does_not_have_is_refused_without_its_value(values: object, like: Tensor, message: str) -> None:
    with pytest.raises(DataError) as caught:
        converted(values, like, "targets")
    assert message in str(caught.value)
    assert "300" not in str(caught.value)


def test_several_inputs_are_converted_one_by_one() -> None:
    like = {"ids": CLASSES, "values": torch.zeros(4, 2)}
    given = {"values": np.ones((3, 2)), "ids": [1.0, 2.0, 3.0]}
    taken = converted(given, like, "inputs")
    assert isinstance(taken, dict)
    assert [(name, part.dtype) for name, part in taken.items()] == [("ids", torch.int64), ("values", torch.float32)]
    assert changes((given, CLASSES), (taken, CLASSES)) == ["inputs from float64 to float32"]
    assert isinstance(converted([[1], [2]], (CLASSES, CLASSES), "inputs"), tuple)
    for other in ({"ids": [1]}, None, "text", (torch.ones(1), torch.ones(1))):
        assert converted(other, like, "inputs") is other
