"""What the server must remember of a run, to go on with it after it was killed.

    kept before             so that the next process
    a plan is sent          asks for the same updates again; sites send the very bytes in their outbox
    contributors are asked  adds up the same set: a site signs one set for a plan, and reveals the seed of one mask;
                            of each of its sites, it takes the same update as before, and no other
    a sum is delivered      delivers it again (`strategies.event_log` stores it); sites open it once
    sites go back           counts a round's votes once
    the next round          begins there

Nothing in it is secret. Which nodes speak for the sites, and what they hold, every process asks anew.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.errors import CloisterError, RunError
from privacy.run.plan import read_plan
from privacy.run.settings import SiteName

ADVICE = "restore the newest copy from the server's backup, or sign the run again"
_Names = tuple[SiteName, ...]


@dataclass(frozen=True, config=STRICT)
class ReleasedSum:
    """A sum that counts: its round, the model that it applies to, and the resulting model, once confirmed."""

    round: int
    base: Hex32
    model: Hex32 | None


@dataclass(frozen=True, config=STRICT)
class UndoneSum:
    """A sum whose model was rejected, with the votes, in hex, and the range of updates before it."""

    round: int
    base: Hex32
    model: Hex32
    votes: dict[SiteName, Annotated[str, Field(pattern=r"^([0-9a-f]{2})+$")]]
    update_bound: float


@dataclass(frozen=True, config=STRICT)
class Conduct:
    """How sites behaved in earlier rounds: what `strategies.selection` chooses by."""

    withheld: dict[SiteName, int]
    left_out: dict[SiteName, int]
    disputes: tuple[tuple[SiteName, SiteName], ...]
    outcomes: tuple[tuple[bool, _Names], ...]  # rounds, oldest first: whether sound, and their contributors


@dataclass(frozen=True, config=STRICT)
class RunState:
    """A run as it stands."""

    run: Hex32
    round: Annotated[int, Field(ge=0)]  # the last that had a plan
    plan: str  # of its last attempt; empty if the round is over
    asked: _Names  # contributors who were asked to sign that they are the set
    updates: dict[SiteName, Hex32]  # SHA-256 of the header of each update that has arrived for the plan
    released: int
    model: Hex32 | None
    update_bound: float
    expelled: dict[SiteName, str]
    sums: tuple[ReleasedSum, ...]
    undone: tuple[UndoneSum, ...]
    conduct: Conduct


_STATE = TypeAdapter(RunState)


def state_from(data: bytes, run: str, place: str) -> RunState:
    """Read the state of a run.

    Args:
        data: its bytes.
        run: the run's digest.
        place: where they are kept, for messages.

    Raises:
        RunError: if they are not the state of this run.
    """
    try:
        state = _STATE.validate_json(data)
        read_plan(state.plan.encode()) if state.plan else None
    except (ValidationError, CloisterError) as error:
        msg = f"{place}: the run's state is damaged; {ADVICE}"
        raise RunError(msg) from error
    if state.run != run:
        msg = f"{place}: this is the state of another run; {ADVICE}"
        raise RunError(msg)
    return state


def state_to_bytes(state: RunState) -> bytes:
    """Encode a state as JSON."""
    return json.dumps(asdict(state)).encode()
