"""Define and open the manifest: a run's signed parameters, that is `run.toml` and σ calibrated over all steps.

Every parameter that matters for privacy is here and nowhere else; no later message can change it. The protocol
identifies a run by the manifest's digest, so every signature that covers the run covers all of its parameters.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.accounting.accounting import Mechanism
from privacy.config import STRICT
from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, MalformedError, RefusedError
from privacy.run.people import Person, may, with_right
from privacy.run.settings import RunSettings

if TYPE_CHECKING:
    from privacy.codec.packing import Packing
    from privacy.crypto.signing import PublicKey
    from privacy.run.roster import Roster

KIND = "manifest"


@dataclass(frozen=True, config=STRICT)
class Manifest:
    """A run's signed parameters: the settings, and the one σ calibrated over all steps."""

    settings: RunSettings
    noise_multiplier: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    roster_version: Annotated[int, Field(ge=1)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]  # makes runs with the same settings distinct
    created: str  # ISO 8601
    expires: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970; no site takes part afterwards
    version: Literal[1] = 1

    def check_valid(self, now: float) -> None:
        """Check that the run has not expired.

        Raises:
            RefusedError: if it has: only who may sign runs can renew an old one.
        """
        if now > self.expires:
            until = datetime.fromtimestamp(self.expires, UTC).isoformat(timespec="seconds")
            msg = f"the run {self.settings.name!r} expired on {until}; have it signed again"
            raise RefusedError(msg)

    @cached_property
    def packing(self) -> Packing:
        """The run's packing."""
        return self.settings.packing(self.noise_multiplier)

    def weight(self, site: str) -> float:
        """Return the weight of a site's update."""
        return self.settings.weight(site)

    @property
    def update_noise(self) -> float:
        """The σ of the noise in a site's update before packing; a share of the noise is added later."""
        return 0.0 if self.settings.shares_noise else self.noise_multiplier

    @property
    def round_cost(self) -> Mechanism:
        """The cost of one round for a site."""
        return Mechanism(self.noise_multiplier, *self.settings.kind.sampling, self.settings.shares_noise)

    @property
    def run_cost(self) -> Mechanism:
        """The cost of the whole run for a site."""
        rate, steps = self.settings.kind.sampling
        return Mechanism(self.noise_multiplier, rate, steps * self.settings.rounds, self.settings.shares_noise)

    @property
    def votes_cost(self) -> Mechanism:
        """The cost of all votes of the run for a site's held-out records."""
        vote = self.settings.vote
        return Mechanism.response(vote.epsilon if vote else 0.0, self.settings.rounds)


class SignedRun(NamedTuple):
    """A manifest that a person signed whom the roster allows to sign runs."""

    document: bytes  # signed, in wire form
    manifest: Manifest
    digest: str  # identifies the run
    signer: Person


def open_run(data: bytes, roster: Roster) -> SignedRun:
    """Find out who in a roster signed a run, check that their role may, then read the manifest.

    Raises:
        AuthenticityError: if nobody in the roster signed it.
        RefusedError: if whoever signed it may not sign runs.
        MalformedError: if it is not a manifest of this version.
    """
    for person in roster.people:
        try:
            SignedDocument.open(data, KIND, person.verification_key)
        except AuthenticityError:
            continue
        if not may(person.role, "sign"):
            msg = (
                f"{person.name} signed this run as {person.role}, and only {with_right('sign')} may sign runs (roster "
                f"{roster.version}); ask one of them to sign it"
            )
            raise RefusedError(msg)
        return SignedRun(data, *open_manifest(data, person.verification_key), person)
    msg = (
        f"nobody in roster {roster.version} of {roster.consortium} signed this run: it was altered, or whoever signed "
        "it is no longer listed, or joined later; take the newest roster (`cloister roster take`, or start the agent), "
        f"or ask one of the {with_right('sign')} to sign it"
    )
    raise AuthenticityError(msg)


def open_manifest(data: bytes, key: PublicKey) -> tuple[Manifest, str]:
    """Check a signature, then read the manifest; return it and its digest, which identifies the run.

    Raises:
        AuthenticityError: if the key's owner did not sign it.
        MalformedError: if it is not a manifest of this version.
    """
    document = SignedDocument.open(data, KIND, key)
    try:
        return TypeAdapter(Manifest).validate_json(document.payload), document.digest
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        msg = (
            f"this manifest does not fit this version of Cloister ({place}: {first['msg']}); use the same "
            "version everywhere"
        )
        raise MalformedError(msg) from error
