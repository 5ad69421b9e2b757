"""What a log entry is about: the run, the round and the site on which this thread works.

>>> with about(site="north"):
...     note(run="1a2b3c4d", round=2)
...     fields()
{'site': 'north', 'run': '1a2b3c4d', 'round': 2}
>>> fields()
{}
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FIELDS: ContextVar[Mapping[str, str | int]] = ContextVar("log_fields", default=MappingProxyType({}))


def fields() -> dict[str, str | int]:
    """Return what this thread's log entries are about."""
    return dict(_FIELDS.get())


def note(**known: str | int) -> None:
    """Add to what they are about, until the innermost `about` ends."""
    _FIELDS.set({**_FIELDS.get(), **known})


@contextmanager
def about(**known: str | int) -> Iterator[None]:
    """Say what this thread's log entries are about."""
    token = _FIELDS.set({**_FIELDS.get(), **known})
    try:
        yield
    finally:
        _FIELDS.reset(token)
