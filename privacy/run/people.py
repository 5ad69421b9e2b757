"""The people of a consortium: their entries in its roster, their roles, and what each role may do.

`RIGHTS` is the only place where that is said. Whoever checks a person's right asks `may`.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.run.settings import SiteName

Role = Literal["coordinator", "researcher", "operator", "auditor"]
Right = Literal["sign", "administer", "operate", "stop", "audit", "look"]

ROLES: tuple[Role, ...] = get_args(Role)

RIGHTS: dict[Right, frozenset[Role]] = {
    "sign": frozenset({"coordinator", "researcher"}),  # runs, which sites then train
    "administer": frozenset({"coordinator"}),  # invite and approve members, change the roster
    "operate": frozenset({"operator"}),  # the server: start, stop, settings
    "stop": frozenset({"coordinator", "operator"}),  # anybody's run, and let a failed one go on
    "audit": frozenset({"auditor"}),  # read logs and evidence
    "look": frozenset(ROLES),  # at runs and their results
}
"""Which roles have a right."""


def may(role: Role, right: Right) -> bool:
    """Return whether a role has a right.

    >>> may("researcher", "sign"), may("auditor", "sign")
    (True, False)
    """
    return role in RIGHTS[right]


def read_role(text: str) -> Role:
    """Return the role that a text names.

    Raises:
        ValueError: if it names none.
    """
    for role in ROLES:
        if role == text:
            return role
    msg = f"{text!a} is not a role; roles are {', '.join(ROLES)}"
    raise ValueError(msg)


def with_right(right: Right) -> str:
    """Return the roles that have a right, for a sentence.

    >>> with_right("sign")
    'coordinators and researchers'
    """
    return " and ".join(f"{role}s" for role in ROLES if may(role, right))


def not_a_role(name: str) -> str:
    """Return a person's name, having checked that it is not a role's: lists name people and roles alike.

    Raises:
        ValueError: if it is.
    """
    if name in ROLES:
        msg = f"{name} is a role, not a name; choose another"
        raise ValueError(msg)
    return name


PersonName = Annotated[SiteName, AfterValidator(not_a_role)]


@dataclass(frozen=True, config=STRICT)
class Person:
    """One person's entry in the roster."""

    name: PersonName
    role: Role
    signing_key: Hex32  # Ed25519

    @property
    def verification_key(self) -> Ed25519PublicKey:
        """The key that verifies this person's signatures."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key))

    def is_in(self, listed: tuple[str, ...]) -> bool:
        """Return whether a list has this person's name or role."""
        return self.name in listed or self.role in listed
