"""Signed updates and encrypted sums: what binds a ciphertext to one site, one round and one model.

A header says everything that an update is about; the site's Ed25519 key signs it, and it carries the digest of
the ciphertexts. The server verifies before it adds; the headers travel with the sum, so that every site checks
again who contributed, to which plan, with which weight. A header signs its seeds by themselves too: they fix c1, so
that a sum which leaves a site out, or counts one twice, decrypts to noise and not to somebody's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.ciphertext import C0_BYTES, Ciphertexts, add_residues, pack60, residues, seeds_digest
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.header import KIND, UpdateHeader, verify_header
from privacy.packing import RING_DEGREE
from privacy.plan import read_plan
from privacy.signing import sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from privacy.encryption import EncryptedUpdate
    from privacy.manifest import Manifest
    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from privacy.signing import PrivateKey
    from privacy.update import Model


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


@dataclass(frozen=True)
class EncryptedSum:
    """The sum of a round's updates, and who contributed. The server can make one; only sites can open it."""

    plan: bytes
    contributions: tuple[Contribution, ...]
    c0: bytes


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
        key_epoch=plan.key_epoch,
        base_model=plan.base_model,
        layout=model.layout.digest,
        size=model.layout.size,
        weight=weight,
        ciphertexts=update.ciphertexts.digest,
        seeds=update.ciphertexts.seeds_digest,
        ledger_head=update.charge.head,
    )
    data = header.to_bytes()
    return SignedUpdate(data, sign(key, KIND, data), update.ciphertexts.to_bytes())


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


class RunningSum:
    """A round's sum as it grows: memory for one sum, whatever the number of sites."""

    def __init__(self, plan: RoundPlan) -> None:
        self.plan = plan
        self._total: NDArray[np.uint64] | None = None
        self._layout: tuple[str, int] | None = None
        self._contributions: dict[str, Contribution] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Who has contributed so far."""
        return tuple(self._contributions)

    def add(self, update: VerifiedUpdate) -> None:
        """Add one verified update modulo q.

        Raises:
            ProtocolError: if it is for another plan, its site is in the sum already, or its model has another layout.
        """
        header, wrong = update.header, None
        if header.plan != self.plan.digest:
            wrong = "it is for another round's plan"
        elif header.site in self._contributions:
            wrong = "this site's update is in the sum already"
        elif self._layout not in (None, (header.layout, header.size)):
            wrong = "its model has other tensors than the other sites'"
        if wrong:
            msg = f"{header.site}'s update was not added: {wrong}"
            raise ProtocolError(msg)
        if self._total is None:
            self._total = np.zeros((len(update.residues), RING_DEGREE), dtype=np.uint64)
            self._layout = (header.layout, header.size)
        add_residues(self._total, update.residues)
        self._contributions[header.site] = update.contribution

    def close(self) -> EncryptedSum:
        """Return the sum of what was added.

        Raises:
            ProtocolError: if fewer contributed than the plan's minimum: then nothing may be released.
        """
        if self._total is None or len(self._contributions) < self.plan.minimum_cohort:
            msg = (
                f"round {self.plan.round}: {len(self._contributions)} of the {self.plan.minimum_cohort} sites "
                "that it needs sent an update; nothing was released"
            )
            raise ProtocolError(msg)
        return EncryptedSum(self.plan.to_bytes(), tuple(self._contributions.values()), pack60(self._total.reshape(-1)))


def check_sum(total: EncryptedSum, run: str, manifest: Manifest, roster: Roster) -> tuple[RoundPlan, list[float]]:
    """Check who contributed to a sum, before a site decrypts it; return its plan and the contributors' weights.

    Raises:
        AuthenticityError, MalformedError, ProtocolError: if a header does not hold, seeds are not those that were
            signed, a site contributed twice, or fewer did than the manifest's minimum cohort.
    """
    plan = read_plan(total.plan)
    if plan.run != run or plan.round > manifest.settings.rounds:
        msg = "the sum is for another run; it was not opened"
        raise ProtocolError(msg)
    headers = []
    for contribution in total.contributions:
        site = _claimed_site(contribution.header, plan.cohort)
        header = verify_header(contribution.header, contribution.signature, site, plan, manifest, roster)
        if seeds_digest(contribution.seeds) != header.seeds:
            msg = f"the seeds of {site}'s update are not the ones that it signed; the sum was not opened"
            raise AuthenticityError(msg)
        headers.append(header)
    if len({header.site for header in headers}) != len(headers):
        msg = f"a site stands twice in the sum of round {plan.round}; it was not opened"
        raise ProtocolError(msg)
    if len(headers) < manifest.settings.cohort.minimum:
        msg = f"the sum of round {plan.round} is over {len(headers)} sites, fewer than the minimum; it was not opened"
        raise ProtocolError(msg)
    if len({(header.layout, header.size) for header in headers}) != 1:
        msg = f"the sum of round {plan.round} is over models with different tensors; it was not opened"
        raise ProtocolError(msg)
    if len(total.c0) != manifest.packing.ciphertexts(headers[0].size) * C0_BYTES:
        msg = f"the sum of round {plan.round} was cut or padded; it was not opened"
        raise MalformedError(msg)
    return plan, [header.weight for header in headers]


def _claimed_site(header: bytes, cohort: Sequence[str]) -> str:
    """Return which of the cohort a header claims to be from; `verify_header` then proves or refutes it."""
    for site in cohort:
        if f'"site":"{site}"'.encode() in header:
            return site
    msg = "a contribution names no site of the cohort; the sum was not opened"
    raise MalformedError(msg)
