"""What the arrays of a table's column hold: as texts, numbers or truth values.

They are PyArrow's, which has no types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import compute

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

pc: Any = compute  # it makes its functions when it is imported, unseen by type checkers


def plain_numbers(array: Any) -> Any:  # noqa: ANN401
    """Return texts as numbers, if all are finite ones, or null; much faster than a search for those that are not."""
    try:
        values = pc.cast(array, pa.float64())
    except pa.ArrowInvalid:
        return None
    return values if pc.all(pc.is_finite(values), min_count=0).as_py() else None


def words_of(array: Any) -> Any:  # noqa: ANN401
    """Return values as texts; floating-point numbers that are whole, as codes with gaps become, as whole ones."""
    array = pc.cast(array, pa.float32()) if pa.types.is_float16(array.type) else array
    if pa.types.is_floating(array.type):
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**53))
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
        whole = pc.fill_null(whole, fill_value=False)
        integers = pc.cast(pc.if_else(whole, array, pa.scalar(None, array.type)), pa.int64())
        return pc.coalesce(pc.cast(integers, pa.string()), pc.cast(array, pa.string()))
    texts = pc.cast(array, pa.string())
    plain = pc.all(pc.string_is_ascii(texts), min_count=0).as_py()
    return texts if plain else pc.utf8_normalize(texts, "NFC")  # ö may be one character or two


def floats(array: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Return values as numbers `(n,)`, with NaN for null."""
    values: NDArray[np.float64] = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def mask(array: Any, *, absent: bool = False) -> NDArray[np.bool_]:  # noqa: ANN401
    """Return truth values `(n,)`, with `absent` for null."""
    values: NDArray[np.bool_] = pc.fill_null(array, absent).to_numpy(zero_copy_only=False)
    return values


def is_text(kind: Any) -> bool:  # noqa: ANN401
    """Return whether values of this type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_plain(kind: Any) -> bool:  # noqa: ANN401
    """Return whether values of this type have a text that people would write in a list of categories."""
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, pa.types.is_decimal)
    return is_text(kind) or any(test(kind) for test in tests)


def kind_of(kind: Any) -> str:  # noqa: ANN401
    """Name a type of PyArrow; its text could hold names of fields."""
    return "a list or structure" if pa.types.is_nested(kind) else f"of type {kind}"
