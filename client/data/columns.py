"""Declare the columns of a task's records, with everything that turns them into numbers: public constants.

    Number("age", low=18, high=100, missing=45)
    Category("region", ["north", "south"], other="other")
    Flag("smoker")
    Date("admitted", low=date(2015, 1, 1), high=date(2025, 12, 31))

Ranges, categories and the values that stand for missing ones are the same at all sites, and never come from a site's
records: whatever is learned from records shapes the model outside the privacy budget.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from datetime import date  # noqa: TC003 - of a dataclass, whose types others may read
from typing import TYPE_CHECKING, Literal, NoReturn

from typing_extensions import override

from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OTHER = "other"
_YES, _NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f")


@dataclass(frozen=True)
class Column(ABC):
    """One column of a task's records. `code` is where a FHIR source finds it, such as `loinc:2339-0`."""

    name: str

    @property
    @abstractmethod
    def width(self) -> int:
        """How many inputs it becomes."""

    @property
    @abstractmethod
    def described(self) -> str:
        """Its kind and range, for people."""

    def refuse(self, problem: str) -> NoReturn:
        """Refuse this declaration.

        Raises:
            TaskError: with these words.
        """
        msg = f"the column {self.name!r} of this task {problem}"
        raise TaskError(msg)


@dataclass(frozen=True)
class Number(Column):
    """A number: clipped to `low` … `high`, which are mapped to -1 … 1.

    Raises:
        TaskError: if the declaration makes no sense.
    """

    low: float = field(kw_only=True)
    high: float = field(kw_only=True)
    missing: float | None = field(default=None, kw_only=True)  # stands for a missing value; None: none may be missing
    unit: str | None = field(default=None, kw_only=True)
    convert: Mapping[str, float] = field(default_factory=dict, kw_only=True)  # other units, and what one of each is
    code: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the declaration."""
        if not (-math.inf < self.low < self.high < math.inf):
            self.refuse("needs finite bounds: low below high")
        if self.missing is not None and not self.low <= self.missing <= self.high:
            self.refuse("has a value for missing ones outside its range; choose one inside")
        if self.convert and self.unit is None:
            self.refuse("converts units, but has none itself; declare unit")
        if not all(0 < abs(factor) < math.inf for factor in self.convert.values()):
            self.refuse("converts a unit by a factor that is 0 or not finite; correct it")

    @property
    @override
    def width(self) -> int:
        return 1

    @property
    @override
    def described(self) -> str:
        return f"{self.low:g} … {self.high:g}{f' {self.unit}' if self.unit else ''}"

    def factor(self, unit: str | None) -> float | None:
        """Return what to multiply a value in this unit by; None if the unit is not declared. No unit: as declared."""
        return 1.0 if unit in {None, self.unit} else self.convert.get(unit or "")


@dataclass(frozen=True)
class Category(Column):
    """One of a public list of values: as an input, one number per value, 1 for the record's own and 0 for the others.

    With `other="other"`, a value that is not listed has a place of its own, the last; otherwise it is refused.

    Raises:
        TaskError: if the declaration makes no sense.
    """

    values: Sequence[str]
    other: Literal["refuse", "other"] = "refuse"
    missing: str | None = None  # the value that stands for a missing one; None: none may be missing
    code: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the declaration."""
        if isinstance(self.values, str) or not all(isinstance(value, str) for value in self.values):
            self.refuse('must list its values as text: ["1", "2"]')
        if len(self.places) < 2 or len(self.places) != len(set(self.places)):  # noqa: PLR2004 - of one, all are the same
            self.refuse("needs at least two different values")
        if any(value != value.strip() or not value for value in self.values):
            self.refuse("has a value that is empty, or has spaces at its ends; correct it")
        if self.missing is not None and self.missing not in self.places:
            self.refuse("has a value for missing ones that is not in its list")

    @property
    def places(self) -> tuple[str, ...]:
        """Its values, and the place of all others if it has one."""
        return (*self.values, OTHER) if self.other == "other" else tuple(self.values)

    @property
    @override
    def width(self) -> int:
        return len(self.places)

    @property
    @override
    def described(self) -> str:
        return ", ".join(self.places)


@dataclass(frozen=True)
class Flag(Column):
    """Yes or no, as 1 or 0. Case does not matter.

    Raises:
        TaskError: if the declaration makes no sense.
    """

    yes: Sequence[str] = field(default=_YES, kw_only=True)
    no: Sequence[str] = field(default=_NO, kw_only=True)
    missing: bool | None = field(default=None, kw_only=True)
    code: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the declaration."""
        words = [word.lower() for word in (*self.yes, *self.no)]
        if isinstance(self.yes, str) or isinstance(self.no, str) or not (self.yes and self.no):
            self.refuse('must list what it takes for yes and no: yes=["ja"], no=["nein"]')
        if len(words) != len(set(words)):
            self.refuse("has a word twice among those for yes and no; correct it")

    @property
    @override
    def width(self) -> int:
        return 1

    @property
    @override
    def described(self) -> str:
        return f"{self.yes[0]} or {self.no[0]}"


@dataclass(frozen=True)
class Date(Column):
    """A day: clipped to `low` … `high`, which are mapped to -1 … 1. The time of day is not used.

    Raises:
        TaskError: if the declaration makes no sense.
    """

    low: date = field(kw_only=True)
    high: date = field(kw_only=True)
    missing: date | None = field(default=None, kw_only=True)
    code: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Check the declaration."""
        if self.low >= self.high:
            self.refuse("needs low before high")
        if self.missing is not None and not self.low <= self.missing <= self.high:
            self.refuse("has a day for missing ones outside its range; choose one inside")

    @property
    @override
    def width(self) -> int:
        return 1

    @property
    @override
    def described(self) -> str:
        return f"{self.low} … {self.high}"


AnyColumn = Number | Category | Flag | Date
"""The kinds of columns."""


def check_columns(columns: Sequence[AnyColumn]) -> None:
    """Check that columns have different names.

    Raises:
        TaskError: if two have the same, or one has none.
    """
    names = [column.name for column in columns]
    for name in names:
        if not name.strip() or names.count(name) > 1:
            msg = f"the columns of this task must have different names; {name!r} is empty, or there twice"
            raise TaskError(msg)
