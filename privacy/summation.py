"""The sum: how the server builds it from verified updates, and how a site checks it before it opens it.

The headers of all contributors travel with the sum, so every site checks for itself who contributed, to which plan,
with which weight. The tag inside (`privacy.tag`) then proves that the sum is of just those updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from privacy.ciphertext import C0_BYTES, add_residues, pack60, seeds_digest
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.header import verify_header
from privacy.packing import RING_DEGREE
from privacy.plan import RoundPlan, read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from privacy.envelope import Contribution, VerifiedUpdate
    from privacy.manifest import Manifest
    from privacy.roster import Roster


@dataclass(frozen=True)
class EncryptedSum:
    """The sum of a round's updates, and who contributed. The server can make one; only sites can open it."""

    plan: bytes
    contributions: tuple[Contribution, ...]
    c0: bytes


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


def check_sum(total: EncryptedSum, run: str, manifest: Manifest, roster: Roster) -> tuple[RoundPlan, dict[str, float]]:
    """Check who contributed to a sum, before a site decrypts it; return its plan and each contributor's weight.

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
    return plan, {header.site: header.weight for header in headers}


def _claimed_site(header: bytes, cohort: Sequence[str]) -> str:
    """Return which of the cohort a header claims to be from; `verify_header` then proves or refutes it."""
    for site in cohort:
        if f'"site":"{site}"'.encode() in header:
            return site
    msg = "a contribution names no site of the cohort; the sum was not opened"
    raise MalformedError(msg)
