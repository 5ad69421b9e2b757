"""A schedule: a run's form, what goes wrong in it, and where. One integer decides all of it.

lose     a connection breaks under a message or an answer: later the site gets the message again
delay    it arrives late, perhaps after the round's deadline, and after others that were sent later
double   it arrives twice
replay   an earlier message to the same site arrives once more
alter    something between server and site, or the server itself, puts another in its place (`lies`): only
         answers, or messages too
kill     a party is killed before one of its changes to its disk, or the server between two messages
cut      the same, and the power fails: what was not synced is lost, in part or whole
leave    a site is offline for a while
lie      a member sends something false with all its keys, in one kind of message
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simulations.schedules.consortium import SECONDS, SITES, Shape

if TYPE_CHECKING:
    from collections.abc import Iterator

_MESSAGES = {"lose": 4, "delay": 5, "double": 2, "replay": 2, "leave": 2}
_CRASHES = {"kill": 4, "cut": 3}
_SHAPES = (
    (Shape(3, 2, 2, masked=False), 7), (Shape(4, 3, 2, masked=False), 2), (Shape(3, 2, 3, masked=False), 1),
    (Shape(3, 3, 2, masked=True), 3), (Shape(4, 3, 2, masked=True), 5), (Shape(4, 3, 3, masked=True), 1),
    (Shape(5, 3, 2, masked=True), 1),
)  # fmt: skip
_QUERY, _PLAIN, _MASKED = 2, 4, 8  # messages and answers of a site: to be ready, and in a round
_CEREMONY = 5
_CHANGES = 26  # that a site makes to its disk in a round, about
_SERVER = 12  # the server, and four for every site
_LIES = ("a wrong code", "a wrong tag", "a false seed", "a false commitment", "a false digest", "a false refusal")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    kind: str
    place: int  # which message, or which change to the party's disk, counted from the schedule's beginning
    party: str = ""  # of a crash; empty otherwise
    seconds: float = 0.0  # of a delay, or until the party is back
    choice: int = 0  # seed of what chance decides besides

    def __str__(self) -> str:
        """Return the fault in a few words."""
        where = f"{self.party}'s change {self.place}" if self.party else f"message {self.place}"
        return f"{self.kind} at {where}" + (f", {self.seconds:.1f} s" if self.seconds else "")


@dataclass(frozen=True)
class Schedule:
    """Everything that a seed decides."""

    seed: int
    shape: Shape
    keys: bool  # whether the sites have keys already
    calm: bool  # whether nothing goes wrong any more once the last round is planned
    faults: tuple[Fault, ...]
    hostile: bool = False  # whether the server's messages are altered too: then sites may refuse it for good
    liar: str | None = None
    lie: str = ""

    def __str__(self) -> str:
        """Return the schedule in one line."""
        shape, masks = self.shape, "with masks" if self.shape.masked else "without masks"
        words = [f"{shape.rounds} rounds, {shape.minimum} of {shape.sites} sites, {masks}", *map(str, self.faults)]
        words += ["the server lies"] * self.hostile + [f"{self.liar} lies: {self.lie}"] * bool(self.liar)
        return "; ".join(words)

    def smaller(self) -> Iterator[Schedule]:
        """Yield the schedules with one fault less."""
        for place in range(len(self.faults)):
            yield replace(self, faults=self.faults[:place] + self.faults[place + 1 :])
        if self.liar:
            yield replace(self, liar=None, lie="")


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    rng = random.Random(seed)  # noqa: S311 - guards nothing
    (shape,) = rng.choices([shape for shape, _ in _SHAPES], [weight for _, weight in _SHAPES])
    keys, kind = rng.random() < 9 / 10, rng.choices(("faults", "altered", "hostile", "lying"), (10, 3, 4, 2))[0]
    if kind == "lying" and not (shape.masked and shape.sites > shape.minimum):
        kind = "faults"
    messages = shape.sites * (_QUERY + shape.rounds * (_MASKED if shape.masked else _PLAIN) + (not keys) * _CEREMONY)
    faults = [_fault(rng, shape, messages) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6)))]
    if kind in {"altered", "hostile"}:
        faults += [_alteration(rng, shape, messages) for _ in range(rng.randint(2, 5))]
    liar = SITES[rng.randrange(shape.sites)] if kind == "lying" else None
    ordered = tuple(sorted(faults, key=lambda fault: (fault.party, fault.place)))
    lie = rng.choice(_LIES) if liar else ""
    return Schedule(seed, shape, keys, rng.random() < 3 / 4, ordered, kind == "hostile", liar, lie)


def _fault(rng: random.Random, shape: Shape, messages: int) -> Fault:
    (kind,) = rng.choices(list(_MESSAGES | _CRASHES), list((_MESSAGES | _CRASHES).values()))
    if kind in _MESSAGES or rng.random() < 1 / 6:
        return _of_message(rng, kind, messages)
    party = rng.choice(("server", "server", *SITES[: shape.sites]))
    changes = _SERVER + 4 * shape.sites if party == "server" else _CHANGES
    place = rng.randint(1, changes * shape.rounds)
    return Fault(kind, place, party, _seconds(rng), rng.randrange(1 << 30))


def _alteration(rng: random.Random, shape: Shape, messages: int) -> Fault:
    """Return an alteration anywhere, or where the first updates are asked for and sent."""
    fault = _of_message(rng, "alter", messages)
    first = rng.randint(_QUERY * shape.sites + 1, (_QUERY + 2) * shape.sites)
    return fault if rng.random() < 2 / 3 else replace(fault, place=first)


def _of_message(rng: random.Random, kind: str, messages: int) -> Fault:
    return Fault(kind, rng.randint(1, messages), "", _seconds(rng), rng.randrange(1 << 30))


def _seconds(rng: random.Random) -> float:
    """Return a short time, or one beyond a round's deadline."""
    return rng.choice((rng.uniform(0.01, 0.5), rng.uniform(0.5, SECONDS), rng.uniform(SECONDS, 2 * SECONDS)))
