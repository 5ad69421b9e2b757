"""Flower records of every kind, for tests of what carries them."""

from collections.abc import Sequence
from math import inf, nan
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

names = st.text(max_size=8)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats()
numbers = [integers, floats]
scalars = [*numbers, st.booleans(), names, st.binary(max_size=16)]
arrays = st.builds(Array, names, st.lists(integers, max_size=3).map(tuple), names, st.binary(max_size=64))
array_records = st.dictionaries(names, arrays, max_size=3).map(
    lambda entries: ArrayRecord(entries) if entries else ArrayRecord()
)


def _values(kinds: list[st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    value = st.one_of(*kinds, *(st.lists(kind, max_size=3) for kind in kinds))
    return st.dictionaries(names, value, max_size=4)


metric_records = _values(numbers).map(MetricRecord)
config_records = _values(scalars).map(ConfigRecord)
contents = st.dictionaries(names, st.one_of(array_records, metric_records, config_records), max_size=4).map(RecordDict)


def everything() -> RecordDict:
    """One of every kind of value that Flower's records may hold."""
    return RecordDict(
        {
            "arrays": ArrayRecord(
                {
                    "z": Array("float32", (2, 3), "numpy.ndarray", bytes(24)),
                    "a": Array("uint8", (0,), "x", b""),
                    "scalar": Array("int64", (), "", b"12345678"),
                }
            ),
            "no arrays": ArrayRecord(),
            "metrics": MetricRecord(
                {
                    "int": -(2**63),
                    "float": 0.1,
                    "nan": nan,
                    "inf": [inf, -inf, -0.0, 5e-324],
                    "ints": [1, -1],
                    "none": [],
                }
            ),
            "no metrics": MetricRecord(),
            "configs": ConfigRecord(
                {
                    "true": True,
                    "one": 1,
                    "float": 1.0,
                    "text": "1",
                    "bytes": b"1",
                    "trues": [True, False],
                    "ones": [1, 0],
                    "floats": [1.0, 0.0],
                    "texts": ["", "ü"],
                    "blobs": [b"", b"\0"],
                    "no text": "",
                    "no bytes": b"",
                    "false": False,
                    "zero": 0,
                    "none": [],
                    "": 2**63 - 1,
                }
            ),
            "": ConfigRecord(),
        }
    )


def spelled(content: RecordDict) -> list[tuple[str, str, Sequence[tuple[str, str]]]]:
    """Write records out, so that True and 1, 1 and 1.0, and two NaNs can be compared."""
    return [
        (name, type(record).__name__, sorted((key, repr(value)) for key, value in record.items()))
        for name, record in sorted(content.items())
    ]
