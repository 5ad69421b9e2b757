"""Single values out of Flower records, and nothing but the types that they should have."""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from privacy.errors import MalformedError

T = TypeVar("T")
DIGEST = r"[0-9a-f]{64}"
_SITE = r"[a-z][a-z0-9-]{0,31}"
_STYPE = "cloister.bytes.1"


def blob(data: bytes) -> Array:
    """Wrap opaque bytes."""
    return Array("uint8", (len(data),), _STYPE, data)


def array_bytes(content: RecordDict, record: str, name: str) -> bytes:
    """Return the opaque bytes of this name.

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


def numbers(content: RecordDict, record: str) -> dict[str, float]:
    """Return all numbers of a record.

    Raises:
        MalformedError: if it holds anything else.
    """
    values = content.get(record)
    if not isinstance(values, MetricRecord) or not all(isinstance(each, (int, float)) for each in values.values()):
        lacks(record)
    return {name: float(each) for name, each in values.items() if isinstance(each, (int, float))}


def check_names(values: list[Any], what: str) -> None:
    """Check that a list holds names of sites, each once.

    Raises:
        MalformedError: if it holds anything else.
    """
    if len(set(map(str, values))) != len(values) or not all(
        isinstance(each, str) and re.fullmatch(_SITE, each) for each in values
    ):
        lacks(what)


def lacks(what: str) -> NoReturn:
    """Say that a message is not what it should be.

    Raises:
        MalformedError: always.
    """
    msg = f"a message lacks {what}, or holds it in another form; both sides must run the same version"
    raise MalformedError(msg)
