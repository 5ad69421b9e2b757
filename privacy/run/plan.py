"""Define, read and check a round's plan: what the server asks of the cohort. Every update is bound to its digest."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.crypto.signing import digest
from privacy.errors import MalformedError, ProtocolError
from privacy.run.clocks import tolerance
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest


MOST_SEEDS = 32  # the largest cohort in which every site expands all seeds itself
LARGEST_STEP = 10_000  # between the key epochs that a site accepts, so that no single letter uses up the numbers


@dataclass(frozen=True, config=STRICT)
class RoundPlan:
    """One attempt at one round. It has no privacy parameters: those are in the manifest."""

    run: Hex32  # digest of the manifest
    round: Annotated[int, Field(ge=1)]
    attempt: Annotated[int, Field(ge=1)]
    cohort: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    roster_version: int
    epoch: Annotated[int, Field(ge=1)]
    keys: Hex32  # fingerprint of the epoch's keys
    minimum_cohort: int
    deadline: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970
    base_model: Hex32  # digest of the model that training starts from

    @property
    def expanded(self) -> bool:
        """Whether the cohort is so large that the server expands all seeds once, instead of every site doing so."""
        return len(self.cohort) > MOST_SEEDS

    @cached_property
    def members(self) -> frozenset[str]:
        """The cohort as a set."""
        return frozenset(self.cohort)

    def to_bytes(self) -> bytes:
        """Return the canonical form, over which this plan's digest is computed."""
        return self._bytes

    @cached_property
    def _bytes(self) -> bytes:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> str:
        """The digest that every signed update of this round carries."""
        return digest("plan", self.to_bytes())


_PLAN = TypeAdapter(RoundPlan)
_MESSAGES = 6  # after a plan's deadline: to agree, reveal and prove, each asked once more if replies are garbled


@lru_cache(maxsize=8)
def read_plan(data: bytes) -> RoundPlan:
    """Read a plan from the wire. The cache is for the several messages of one round.

    Raises:
        MalformedError: if it is not a plan, or not in canonical form.
    """
    try:
        plan = _PLAN.validate_json(data)
    except ValidationError as error:
        msg = f"the round's plan is malformed ({error.errors()[0]['msg']}); run the same version everywhere"
        raise MalformedError(msg) from error
    if plan.to_bytes() != data:
        msg = "the round's plan is not in canonical form; run the same version everywhere"
        raise MalformedError(msg)
    return plan


def is_under_way(plan: RoundPlan, seconds: float) -> bool:
    """Return whether sites still reveal seeds for a plan of a run with this deadline per round, in seconds."""
    return time.time() <= plan.deadline + _MESSAGES * seconds + tolerance(seconds)


def check_under_way(plan: RoundPlan, seconds: float, site: str) -> None:
    """Check that a plan's round can still be under way, as a site does before it reveals seeds.

    A site restored from an old backup has forgotten which contributors it agreed on, and would sign others.

    Args:
        plan: a plan for which the site has made an update.
        seconds: the run's deadline per round: how long a server waits for the replies to one message.
        site: the site's name.

    Raises:
        ProtocolError: if it is over.
    """
    if not is_under_way(plan, seconds):
        msg = f"the plan of round {plan.round} is long over (or the clocks disagree); {site} reveals no seed for it"
        raise ProtocolError(msg)


def check_plan(plan: RoundPlan, manifest: Manifest, run: str, site: str, *, sent: bool = False) -> None:
    """Check a plan against the manifest, as a site does before it trains.

    Args:
        plan: the plan.
        manifest: the run that it must be for.
        run: the run's digest.
        site: the site that was asked.
        sent: whether the site has made its update for this very plan. A server that was killed may ask for it again
            after the deadline: the same bytes reveal nothing new.

    Raises:
        ProtocolError: naming the first mismatch.
    """
    cohort, now = manifest.settings.cohort, time.time()
    checks = (
        (plan.run == run, "it is for another run"),
        (
            plan.round <= manifest.settings.rounds,
            f"round {plan.round} is beyond the {manifest.settings.rounds} rounds of the manifest",
        ),
        (site in plan.cohort, f"{site} is not in its cohort"),
        (
            len(set(plan.cohort)) == len(plan.cohort) and set(plan.cohort) <= set(cohort.sizes),
            "its cohort names a site twice, or a site that the manifest does not name",
        ),
        (
            cohort.minimum <= plan.minimum_cohort <= len(plan.cohort),
            f"its cohort may be smaller than the {cohort.minimum} sites of the manifest",
        ),
        (
            plan.attempt == 1 or manifest.settings.encryption.collusion_resistant,
            "it is a second attempt, which only a masked round may need",
        ),
        (plan.roster_version == manifest.roster_version, "its roster version is not the manifest's"),
        (sent or plan.deadline >= now, "its deadline has passed, or the clocks disagree"),
        (
            plan.deadline <= now + cohort.round_deadline_seconds + tolerance(cohort.round_deadline_seconds),
            f"its deadline is more than the signed {cohort.round_deadline_seconds:g} s away, or the clocks disagree",
        ),
    )
    for holds, wrong in checks:
        if not holds:
            msg = f"{site} refuses the plan of round {plan.round}: {wrong}"
            raise ProtocolError(msg)
