"""Signed updates: what binds a ciphertext to one site, one round and one model.

A header says everything that an update is about; the site's Ed25519 key signs it, and it carries the digest of
the ciphertexts. The server verifies before it adds; the headers travel with the sum, so that every site checks
again who contributed, to which plan, with which weight. A header signs its seeds by themselves too: they fix c1, so
that a sum which leaves a site out, or counts one twice, decrypts to noise and not to somebody's update.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from privacy.ciphertext import Ciphertexts, residues
from privacy.config import STRICT
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.manifest import SiteName
from privacy.roster import Hex32
from privacy.signing import sign, verify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from privacy.encryption import EncryptedUpdate
    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from privacy.signing import PrivateKey
    from privacy.update import Model

KIND = "update"


@checked_dataclass(frozen=True, config=STRICT)
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
    ciphertexts: Hex32
    seeds: Hex32
    ledger_head: Hex32
    version: Literal[1] = 1


@dataclass(frozen=True)
class SignedUpdate:
    """An update as it travels. Nothing in it has been checked."""

    header: bytes
    signature: bytes
    body: bytes


@dataclass(frozen=True)
class Contribution:
    """One site's part in a sum: its signed header, and the seeds that rebuild its c1."""

    header: bytes
    signature: bytes
    seeds: bytes


@dataclass(frozen=True)
class VerifiedUpdate:
    """An update that its site signed for this very plan, whose ciphertexts are whole and in range."""

    header: UpdateHeader
    residues: NDArray[np.uint64]
    contribution: Contribution


def sign_update(
    update: EncryptedUpdate, plan: RoundPlan, model: Model, site: str, weight: float, key: PrivateKey
) -> SignedUpdate:
    """Bind encrypted values to site, plan, model and ledger, and sign.

    Raises:
        ProtocolError: if the update was charged for another release than the one that the plan asks for.
    """
    release = update.charge.release
    if (release.run, release.round, release.attempt) != (plan.run, plan.round, plan.attempt):
        msg = f"an update that was charged for round {release.round} cannot be sent for round {plan.round}"
        raise ProtocolError(msg)
    header = UpdateHeader(
        site=site,
        run=plan.run,
        round=plan.round,
        attempt=plan.attempt,
        plan=plan.digest,
        roster_version=plan.roster_version,
        keys=plan.keys,
        base_model=plan.base_model,
        layout=model.layout.digest,
        size=model.layout.size,
        weight=weight,
        ciphertexts=update.ciphertexts.digest,
        seeds=update.ciphertexts.seeds_digest,
        ledger_head=update.charge.head,
    )
    data = json.dumps(asdict(header), sort_keys=True, separators=(",", ":")).encode()
    return SignedUpdate(data, sign(key, KIND, data), update.ciphertexts.to_bytes())


def verify_header(data: bytes, signature: bytes, site: str, plan: RoundPlan, manifest: Manifest,
                  roster: Roster) -> UpdateHeader:  # fmt: skip
    """Check that `site` signed this header, for this plan.

    Raises:
        AuthenticityError: if the signature does not hold.
        MalformedError: if it is no header.
        ProtocolError: if it is for another site, plan or weight.
    """
    verify(roster.member(site).verification_key, KIND, data, signature)
    try:
        header = TypeAdapter(UpdateHeader).validate_json(data)
    except ValidationError as error:
        msg = (
            f"the header of {site}'s update is malformed ({error.errors()[0]['msg']}); run the same version everywhere"
        )
        raise MalformedError(msg) from error
    if site not in plan.cohort or site not in manifest.settings.cohort.sizes:
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
    return header


def verify_update(
    signed: SignedUpdate, site: str, plan: RoundPlan, manifest: Manifest, roster: Roster
) -> VerifiedUpdate:
    """Check everything about an update that can be checked without a key. See `verify_header` for the errors.

    Raises:
        MalformedError: if the ciphertexts are too short, too long or out of range.
    """
    header = verify_header(signed.header, signed.signature, site, plan, manifest, roster)
    ciphertexts = Ciphertexts.from_bytes(signed.body, manifest.packing.ciphertexts(header.size))
    if (ciphertexts.digest, ciphertexts.seeds_digest) != (header.ciphertexts, header.seeds):
        msg = f"the ciphertexts of {site}'s update are not the ones that it signed; it was altered on the way"
        raise AuthenticityError(msg)
    contribution = Contribution(signed.header, signed.signature, ciphertexts.seeds)
    return VerifiedUpdate(header, residues(ciphertexts.c0), contribution)
