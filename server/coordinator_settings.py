"""Read `coordinator.toml`: what the coordinator's part in a consortium needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, File
from privacy.run.invitation import Port
from privacy.run.people import PersonName
from transport.address import Dialled

FOUNDER = "founder"
"""The name of the first coordinator, unless another is given."""

_LONGEST_NAME = 64


def printable(name: str) -> str:
    """Check the name of a consortium.

    Raises:
        ValueError: if it is not one.
    """
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        msg = f"a consortium's name has 1 to {_LONGEST_NAME} printable characters"
        raise ValueError(msg)
    return name


@dataclass(frozen=True, config=STRICT)
class CoordinatorSettings:
    """`coordinator.toml`."""

    consortium: Annotated[str, AfterValidator(printable)]
    server: Dialled  # host:port, which agents dial
    joining_port: Port = 0  # of the same host, where sites ask to join; 0: with files only
    roster: File = Path("../server/roster")
    person: PersonName = FOUNDER  # who founded the consortium: the first coordinator in its roster, with signing.key
