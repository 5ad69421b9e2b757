"""Values of mixed types mean what they mean alone: no row changes what another becomes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from client.data.columns import AnyColumn, Category, Flag, Number
from client.data.sources.chunks import Chunk, array_of
from client.data.sources.options import Parquet
from client.data.sources.table_tensors import Encoder, Findings

COLUMNS: tuple[AnyColumn, ...] = (
    Number("x", low=0, high=1e6, missing=0),
    Category("x", ["1", "true", "2.5", "a"], other="other", missing="a"),
    Flag("x", yes=["1", "true"], no=["0", "false", "2.5", "a", "9007199254740993"], missing=False),
)


def encoded(column: AnyColumn, values: list[Any]) -> tuple[list[float] | None, ...]:
    usable, problems = np.ones(len(values), bool), list[Any]()
    chunk = Chunk({"x": array_of(values)}, range(len(values)))
    tensor = Encoder(Parquet(), Findings()).inputs(column, chunk, usable, problems)
    return tuple(row if use else None for row, use in zip(tensor.tolist(), usable.tolist(), strict=True))


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: type(column).__name__)
@pytest.mark.parametrize(
    "value",
    [1, 1.0, 0.1, 2.5, Decimal("2.5"), None, float("nan"), Decimal("NaN"), 9007199254740993, "1", "a"],
    ids=repr,
)
def test_a_value_means_the_same_whatever_is_in_other_rows(column: AnyColumn, value: object) -> None:
    (alone,) = encoded(column, [value])
    for other in (1, 0.5, "text", None, Decimal(3), True, {"x": 1}, [1], b"x", 2**70):
        assert encoded(column, [value, other])[0] in (alone, None), other


def test_a_structure_is_refused() -> None:
    for column in (COLUMNS[0], COLUMNS[2]):
        assert encoded(column, [{"x": 1}, "1"])[0] is None
