"""Track the open round at the server, and summarise it for the event log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from privacy.errors import ProtocolError, RunError
from privacy.run.plan import RoundPlan
from strategies.waiting_events import ELSEWHERE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flwr.serverapp import Grid

    from privacy.run.manifest import Manifest
    from strategies.membership import Membership
    from transport.reports import ReportedNumbers

_LISTED = 5  # problems that a message lists


@dataclass
class OpenRound:
    """One round with all its attempts."""

    number: int
    started: float = field(default_factory=time.monotonic)
    plan: RoundPlan | None = None  # of the last attempt
    released: bool = False
    resumed: bool = False  # its plan is an earlier process's: sites may refuse it for that alone
    contributors: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # problems reported by sites asked to train
    epsilon: dict[str, float] = field(default_factory=dict)
    taken: dict[str, dict[str, str]] = field(default_factory=dict)  # updates, by the digest of their plan: see `take`
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def updates(self) -> dict[str, str]:
        """SHA-256, in hex, of the signed header of each site's update that has arrived for the plan."""
        return self.taken.setdefault(self.plan.digest, {}) if self.plan else {}

    def take(self, site: str, header: bytes) -> None:
        """Note a site's update for the plan, by its signed header, unless it is the same again.

        Raises:
            ProtocolError: if it is another than before: a site makes one update for a plan.
        """
        digest = sha256(header).hexdigest()
        if self.updates.setdefault(site, digest) != digest:
            msg = "it sent two different updates for the same plan; only the first one counts"
            raise ProtocolError(msg)

    def hear(self, site: str, report: ReportedNumbers) -> Mapping[str, float]:
        """Return the numbers that a site reported with its reply; note if some were left out."""
        if report.dropped:
            self.problems[site] = report.dropped
        return report.numbers

    @property
    def listed(self) -> str:
        """The problems, phrased for a message."""
        return listed(self.problems)

    def check_repeated(self, before: OpenRound, *, started: bool) -> None:
        """Stop a run whose next round would be charged in vain: the sum failed because sites refused to train.

        Args:
            before: the previous round.
            started: whether any round of the run has been released.

        Raises:
            RunError: if no round has been released, or the same sites gave the same reasons in the previous round.
        """
        count, least = len(self.contributors), self.plan.minimum_cohort if self.plan else 0
        if self.released or self.resumed or not count < least <= count + len(self.refused):
            return  # resumed, or nothing was charged, others were missing that may return, or it failed later
        if not started or (not before.released and self.refused == before.refused):
            msg = (
                f"round {self.number} was charged and released nothing: {listed(self.refused)}; the next round would "
                "be charged in vain too, so the run was stopped"
            )
            raise RunError(msg)

    def summary(self) -> dict[str, Any]:
        """Return the round as an event for the event log."""
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
    """Plan a round with these sites, starting from this model and ending after the manifest's deadline."""
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


def begin_round(members: Membership, grid: Grid, sites: list[str], minimum: int) -> list[str]:
    """Have these sites for one run until its round ends; return them, without those that left if that took long."""
    nodes, late = {site: members.nodes[site] for site in sites}, list[int]()

    def waits(busy: set[int]) -> None:
        late.extend(busy)
        here = [site for site in sites if nodes[site] not in busy]
        problems = dict.fromkeys((site for site in sites if nodes[site] in busy), ELSEWHERE)
        members.event_log.record("waiting", sites=here, minimum=minimum, problems=problems)

    members.attention.begin_round(set(nodes.values()), waits)
    online = set(grid.get_node_ids()) if late else set(nodes.values())
    return [site for site in sites if nodes[site] in online]


def listed(problems: Mapping[str, str]) -> str:
    """Phrase problems for a message, listing only the first few."""
    few = [f"{site}: {reason}" for site, reason in sorted(problems.items())[:_LISTED]]
    more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "; ".join(few + more) or "too few sites took part"
