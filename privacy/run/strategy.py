"""Read `strategy` in `run.toml`: the name of the federated algorithm that a run uses, with its parameters.

    strategy = "fedavg"

    [strategy]
    name = "fedadam"
    server_learning_rate = 0.03

Here a strategy is only a name, a version and plain values, enough to sign it; the algorithm itself checks its
parameters where it runs. Signing fills in the version and every default, so that all sites use the same values.
"""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator

Parameter = bool | int | float | str | dict[str, int | float]
"""The type of a parameter. A table has one number per key, such as one per site."""

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}|[\w.]+:\w+")
_KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}")


def _read(value: object) -> object:
    """Return a strategy as a table.

    Raises:
        ValueError: if it is neither a name nor a table of a name, a version and plain values.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        msg = 'name one, as in strategy = "fedavg", or in a table [strategy] with name = "fedavg"'
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports a ValueError
    if not _NAME.fullmatch(table["name"]):
        msg = f"{table['name']!r} is not the name of a strategy; name one that ships, such as fedavg, or module:Class"
        raise ValueError(msg)
    version = table.get("version", 1)
    if type(version) is not int or version < 1:
        msg = "its version must be a whole number from 1; leave it out, and signing sets it"
        raise ValueError(msg)
    for key, parameter in table.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key) or not _is_plain(parameter):
            msg = f"its parameter {key!r} must be a finite number, a string, true or false, or a table of numbers"
            raise ValueError(msg)
    return table


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and type(number) in {int, float} for key, number in value.items()) and all(
            map(_is_plain, value.values())
        )
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


Strategy = Annotated[dict[str, Parameter], BeforeValidator(_read)]
"""A setting: a table, or a name alone as a short form of it."""

FEDAVG: dict[str, Parameter] = {"name": "fedavg", "version": 1}
"""The strategy of a run that names none."""
