"""Define and verify the header of an update: everything that its site signs about it.

The header binds the ciphertexts to one site, round, plan and model. Its weight must be the manifest's.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32
from privacy.crypto.signing import forget_signatures, verify
from privacy.errors import MalformedError, ProtocolError
from privacy.run.settings import SiteName

if TYPE_CHECKING:
    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Member, Roster

KIND = "update"


@dataclass(frozen=True, config=STRICT)
class UpdateHeader:
    """What a site signs about its update."""

    site: SiteName
    run: Hex32
    round: int
    attempt: int
    plan: Hex32  # digest of the round's plan: cohort, deadline, minimum
    roster_version: int
    keys: Hex32  # fingerprint of the epoch's keys
    base_model: Hex32
    layout: Hex32
    size: Annotated[int, Field(ge=1)]  # parameters
    weight: Annotated[float, Field(gt=0, le=1)]
    update_bound: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # the codec's range in this round
    ciphertexts: Hex32  # digest of c0, seeds and codes, against which the server checks the body
    mask: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # commitment to the site's own mask; empty without masks
    pairs: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # and to those shared with each member of the cohort
    nonce: Hex32  # fresh for this update: the pads of its tags and codes are bound to it
    seeds: Hex32  # digest of the seeds alone, for the other sites, which never see this c0
    ledger_head: Hex32
    version: Literal[1] = 1

    @property
    def shared(self) -> tuple[object, ...]:
        """The fields, besides the plan, that all updates of one sum must have in common."""
        return self.layout, self.size, self.update_bound

    def to_bytes(self) -> bytes:
        """Return the canonical form of this header, which is signed."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


_HEADER = TypeAdapter(UpdateHeader)


def verify_header(data: bytes, signature: bytes, site: str, plan: RoundPlan, manifest: Manifest,
                  roster: Roster) -> UpdateHeader:  # fmt: skip
    """Check that `site` signed this header for this plan; return it.

    Raises:
        AuthenticityError: if the signature does not hold.
        MalformedError: if it is not a header, or not in canonical form.
        ProtocolError: if it is for another site, plan or weight, has too wide a range, or is masked against the
            manifest.
    """
    header = _read(data, signature, roster.member(site))
    if site not in plan.members or site not in manifest.settings.cohort.sizes:
        msg = f"{site} is not in the cohort of round {plan.round}; its update was not added"
        raise ProtocolError(msg)
    expected = {
        "site": site,
        "run": plan.run,
        "round": plan.round,
        "attempt": plan.attempt,
        "plan": plan.digest,
        "roster_version": plan.roster_version,
        "keys": plan.keys,
        "base_model": plan.base_model,
        "weight": manifest.weight(site),
    }
    for name, value in expected.items():
        if getattr(header, name) != value:
            msg = f"{site}'s update is for another {name.replace('_', ' ')} than the round's; it was not added"
            raise ProtocolError(msg)
    if header.update_bound > manifest.packing.update_bound:
        msg = f"the range of {site}'s update is wider than the run allows; the update was not added"
        raise ProtocolError(msg)
    if {bool(header.mask), bool(header.pairs)} != {manifest.settings.encryption.collusion_resistant}:
        msg = f"{site}'s update is masked, or not, other than the run says; it was not added"
        raise ProtocolError(msg)
    return header


def forget_headers() -> None:
    """Forget the headers and signatures that were verified: those of the next plan are others."""
    _read.cache_clear()
    forget_signatures()


@lru_cache(maxsize=4096)
def _read(data: bytes, signature: bytes, member: Member) -> UpdateHeader:
    """Verify and read a header. The cache is for processes with many sites, and for headers seen again."""
    verify(member.verification_key, KIND, data, signature)
    try:
        header = _HEADER.validate_json(data)
    except ValidationError as error:
        msg = (
            f"the header of {member.site}'s update is malformed ({error.errors()[0]['msg']}); "
            "run the same version everywhere"
        )
        raise MalformedError(msg) from error
    if header.to_bytes() != data:
        msg = f"the header of {member.site}'s update is not in canonical form; run the same version everywhere"
        raise MalformedError(msg)
    return header
