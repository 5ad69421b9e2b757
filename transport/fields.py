"""Read single values from Flower records, with strict type checks."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
DIGEST = r"[0-9a-f]{64}"
SITE = r"[a-z][a-z0-9-]{0,31}"
_STYPE = "cloister.bytes.1"


def blob(data: bytes) -> Array:
    """Wrap opaque bytes."""
    return Array("uint8", (len(data),), _STYPE, data)


def blobs(parts: Mapping[str, bytes]) -> ArrayRecord:
    """Wrap opaque bytes, each under its name."""
    record = ArrayRecord()  # filled in place: made from a dictionary, it copies every array
    for name, data in parts.items():
        record[name] = blob(data)
    return record


def array_bytes(content: RecordDict, record: str, name: str) -> bytes:
    """Return the opaque bytes with this name.

    Raises:
        MalformedError: if there are none.
    """
    arrays = content.get(record)
    if not isinstance(arrays, ArrayRecord) or name not in arrays or arrays[name].stype != _STYPE:
        lacks(f"{record}.{name}")
    return arrays[name].data


def field(content: RecordDict, record: str, name: str, kind: type[T]) -> T:
    """Return a value of exactly this type.

    Raises:
        MalformedError: if there is none.
    """
    values = content.get(record)
    value: Any = values.get(name) if isinstance(values, ConfigRecord) else None
    if type(value) is not kind:
        lacks(f"{record}.{name}")
    return value


def check_names(values: list[Any], field_name: str) -> None:
    """Check that a list holds distinct site names.

    Raises:
        MalformedError: if it holds anything else.
    """
    if len(set(map(str, values))) != len(values) or not all(
        isinstance(value, str) and re.fullmatch(SITE, value) for value in values
    ):
        lacks(field_name)


def lacks(field_name: str) -> NoReturn:
    """Report that a message lacks a field, or holds it in another form.

    Raises:
        MalformedError: always.
    """
    msg = f"a message lacks {field_name}, or has it in another form; run the same version everywhere"
    raise MalformedError(msg)
