"""What the server knows of the round that is open, and writes down when it is over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from privacy.errors import RunError
from privacy.run.plan import RoundPlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.run.manifest import Manifest
    from transport.reports import Told

_LISTED = 5  # problems that a sentence names


@dataclass
class OpenRound:
    """One round, attempts included."""

    number: int
    started: float = field(default_factory=time.monotonic)
    plan: RoundPlan | None = None  # of the last attempt
    released: bool = False
    contributors: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # of the problems: what sites said that were asked to train
    epsilon: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0

    def hear(self, site: str, told: Told) -> Mapping[str, float]:
        """Return the numbers that a site told beside its reply; note if some were left out."""
        if told.dropped:
            self.problems[site] = told.dropped
        return told.numbers

    @property
    def listed(self) -> str:
        """The problems as part of a sentence."""
        return listed(self.problems)

    def check_repeated(self, before: OpenRound, *, started: bool) -> None:
        """End a run that would only be charged again: the sites that the sum lacked have said why they gave nothing.

        Args:
            before: the round before this one.
            started: whether any round of the run was released.

        Raises:
            RunError: if no round was released yet, or the same sites said the same before.
        """
        given, least = len(self.contributors), self.plan.minimum_cohort if self.plan else 0
        if self.released or not given < least <= given + len(self.refused):
            return  # nothing was charged, or it lacked others, who may be back, or it was lost later
        if not started or (not before.released and self.refused == before.refused):
            msg = (
                f"round {self.number} was charged and released nothing: {listed(self.refused)}; the next would be "
                "charged for the same, so the run was stopped"
            )
            raise RunError(msg)

    def summary(self) -> dict[str, Any]:
        """Return it as an event of the event log."""
        return {
            "round": self.number,
            "released": self.released,
            "attempts": self.plan.attempt if self.plan else 0,
            "cohort": list(self.plan.cohort) if self.plan else [],
            "sites": list(self.contributors),
            "problems": self.problems,
            "epsilon": self.epsilon,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": round(time.monotonic() - self.started, 4),
        }


def first_attempt(
    run: str, manifest: Manifest, number: int, cohort: Sequence[str], *, epoch: int, keys: str, model: str
) -> RoundPlan:
    """Plan a round with these sites, that starts from this model and ends after the manifest's deadline."""
    rules = manifest.settings.cohort
    return RoundPlan(
        run=run,
        round=number,
        attempt=1,
        cohort=tuple(cohort),
        roster_version=manifest.roster_version,
        epoch=epoch,
        keys=keys,
        minimum_cohort=rules.minimum,
        deadline=time.time() + rules.round_deadline_seconds,
        base_model=model,
    )


def listed(problems: Mapping[str, str]) -> str:
    """Write problems as part of a sentence, which names a few of them."""
    few = [f"{site}: {reason}" for site, reason in sorted(problems.items())[:_LISTED]]
    more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "; ".join(few + more) or "too few sites came"
