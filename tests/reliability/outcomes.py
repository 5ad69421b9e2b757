"""What a case of the bench found."""

from collections.abc import Iterable
from dataclasses import dataclass, field


class BrokenError(AssertionError):
    """A promise was not kept."""


class NotRunError(Exception):
    """This machine lacks what a case needs."""


@dataclass
class Outcome:
    """How often a case tried, and what it measured."""

    tries: int = 0
    counts: dict[str, float] = field(default_factory=dict)  # of which those of several seeds are added up
    most: dict[str, float] = field(default_factory=dict)  # of which the largest counts
    reached: set[str] = field(default_factory=set)  # failpoints

    def add(self, other: "Outcome") -> None:
        """Take in what another seed found."""
        self.tries += other.tries
        self.reached |= other.reached
        for name, value in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + value
        for name, value in other.most.items():
            self.note(name, value)

    def note(self, name: str, value: float) -> None:
        """Note a figure of which the largest counts."""
        self.most[name] = max(self.most.get(name, value), value)


def check(holds: object, otherwise: str) -> None:
    """Check that a promise was kept.

    Raises:
        BrokenError: if it was not.
    """
    if not holds:
        raise BrokenError(otherwise)


def same(what: str, found: object, expected: object) -> None:
    """Check that something is as expected.

    Raises:
        BrokenError: if it is not.
    """
    check(found == expected, f"{what}: {_short(found)} instead of {_short(expected)}")


def _short(value: object) -> str:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        value = list(value) if not isinstance(value, dict) else value
    return text if len(text := repr(value)) < 300 else text[:300] + "…"
