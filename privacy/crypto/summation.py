"""Build a round's sum from verified updates, at the server, and check it before it is decrypted, at a site.

The headers of all contributors travel with the sum, so every site checks for itself who contributed, to which plan and
with which weight. The code (`privacy.crypto.mac`) and the tag inside (`privacy.crypto.tag`) then prove that the sum is
of exactly those updates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from privacy.codec.ciphertext import Accumulator, SummedCiphertexts, seeds_digest
from privacy.codec.header import forget_headers, verify_header
from privacy.crypto.expansion import add_expanded
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.run.plan import RoundPlan, read_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.codec.envelope import Contribution, VerifiedUpdate
    from privacy.codec.header import UpdateHeader
    from privacy.run.manifest import Manifest
    from privacy.run.roster import Roster

_SITE = re.compile(rb'"site":"([a-z0-9-]{1,32})"')


@dataclass(frozen=True)
class EncryptedSum:
    """The sum of a round's updates, and who contributed. The server can make one; only sites can open it."""

    plan: bytes
    contributions: tuple[Contribution, ...]
    c0: tuple[bytes, ...]
    codes: bytes  # of the ciphertexts, added up
    c1: tuple[bytes, ...] = ()  # in large cohorts, instead of every contributor's seeds
    proofs: tuple[bytes, ...] = ()  # in a run with `update_norm`: every contributor's norm proof, signed

    @property
    def ciphertexts(self) -> SummedCiphertexts:
        """The summed ciphertexts, to decrypt."""
        return SummedCiphertexts(
            self.c0, tuple(contribution.seeds for contribution in self.contributions), self.c1, self.codes
        )

    @property
    def size(self) -> int:
        """How many bytes of ciphertexts, seeds, codes and proofs each site receives."""
        return sum(map(len, (*self.c0, *self.c1, self.codes, *self.proofs))) + sum(
            len(contribution.seeds) + len(contribution.pairs) for contribution in self.contributions
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what was added up: c0, codes and c1."""
        hashed = sha256(b"cloister sum")
        for part in (*self.c0, self.codes, *self.c1):
            hashed.update(part)
        return hashed.hexdigest()


class RunningSum:
    """A round's sum as it grows, in the memory of one sum, whatever the number of sites."""

    def __init__(self, plan: RoundPlan) -> None:
        forget_headers()  # a server that serves a long run keeps no earlier plan's
        self.plan = plan
        self._c0: Accumulator | None = None
        self._c1: Accumulator | None = None
        self._same: tuple[object, ...] = ()
        self._contributions: dict[str, Contribution] = {}
        self.headers: dict[str, UpdateHeader] = {}
        self.commitments: dict[str, bytes] = {}  # each contributor's, to its masks; empty without masks

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that have contributed so far."""
        return tuple(self._contributions)

    def add(self, update: VerifiedUpdate) -> None:
        """Add one verified update modulo q.

        Raises:
            MalformedError: if it holds anything but residues, or another number of ciphertexts.
            ProtocolError: if it is for another plan, its site is in the sum already, or its model has another layout
                or range.
        """
        header, wrong = update.header, None
        if header.plan != self.plan.digest:
            wrong = "it is for another plan"
        elif header.site in self._contributions:
            wrong = "the sum already contains this site's update"
        elif self._same not in ((), header.shared):
            wrong = "its tensors or the range of its values differ from the other sites'"
        if wrong:
            msg = f"{header.site}'s update was not added: {wrong}"
            raise ProtocolError(msg)
        count, contribution = update.ciphertexts.count, update.contribution
        c0 = self._c0 or Accumulator(count)
        c0.add(update.ciphertexts)
        self._c0, self._same = c0, header.shared
        if self.plan.expanded:
            self._c1 = self._c1 or Accumulator(count)
            add_expanded(self._c1.total, contribution.seeds)
            contribution = replace(contribution, seeds=b"")
        self._contributions[header.site] = contribution
        self.headers[header.site], self.commitments[header.site] = header, update.commitments

    def close(self) -> EncryptedSum:
        """Return the sum of the added updates.

        Raises:
            ProtocolError: if there are fewer contributors than the plan's minimum; then nothing may be released.
        """
        if self._c0 is None or len(self._contributions) < self.plan.minimum_cohort:
            msg = (
                f"round {self.plan.round}: {len(self._contributions)} of the {self.plan.minimum_cohort} sites "
                "that the round needs sent an update; nothing was released"
            )
            raise ProtocolError(msg)
        c1 = self._c1.chunks() if self._c1 else ()
        return EncryptedSum(
            self.plan.to_bytes(), tuple(self._contributions.values()), self._c0.chunks(), self._c0.code_bytes, c1
        )


def check_sum(
    total: EncryptedSum, run: str, manifest: Manifest, roster: Roster
) -> tuple[RoundPlan, dict[str, UpdateHeader]]:
    """Check who contributed to a sum, before a site decrypts it; return its plan and every contributor's header.

    Raises:
        AuthenticityError, MalformedError, ProtocolError: if the sum is for another run or has the wrong form, a header
            is not valid, seeds are not those that were signed, a site contributed twice, or there are fewer
            contributors than the manifest's minimum.
    """
    plan = read_plan(total.plan)
    if plan.run != run or plan.round > manifest.settings.rounds:
        msg = "the sum is for another run; it was not opened"
        raise ProtocolError(msg)
    headers = check_contributions(total.contributions, plan, manifest, roster)
    expanded = plan.expanded
    for header, contribution in zip(headers.values(), total.contributions, strict=True):
        if not expanded and seeds_digest(contribution.seeds) != header.seeds:
            msg = f"the seeds of {header.site}'s update are not those that it signed; the sum was not opened"
            raise AuthenticityError(msg)
    if bool(total.c1) != expanded:
        msg = (
            f"the sum of round {plan.round} has no part c1, or has one although its cohort is too small; it "
            "was not opened"
        )
        raise MalformedError(msg)
    size = next(iter(headers.values())).size
    total.ciphertexts.check(manifest.packing.ciphertexts(size))
    return plan, headers


def check_contributions(
    contributions: Sequence[Contribution], plan: RoundPlan, manifest: Manifest, roster: Roster
) -> dict[str, UpdateHeader]:
    """Check that contributions have valid, consistent headers from enough sites, each once; return the headers by site.

    Raises:
        AuthenticityError, MalformedError, ProtocolError: if they do not.
    """
    headers: dict[str, UpdateHeader] = {}
    for contribution in contributions:
        site = claimed_site(contribution.header, plan)
        if site in headers:
            msg = f"a site is named twice in the sum of round {plan.round}; it was not opened"
            raise ProtocolError(msg)
        headers[site] = verify_header(contribution.header, contribution.signature, site, plan, manifest, roster)
    if len(headers) < manifest.settings.cohort.minimum:
        msg = f"the sum of round {plan.round} has too few contributors ({len(headers)}); it was not opened"
        raise ProtocolError(msg)
    if len({header.shared for header in headers.values()}) != 1:
        msg = f"the sum of round {plan.round} adds updates with different tensors or ranges; it was not opened"
        raise ProtocolError(msg)
    return headers


def claimed_site(header: bytes, plan: RoundPlan) -> str:
    """Return the member of the cohort that a header names, unverified: `verify_header` must check it next.

    Raises:
        MalformedError: if it names no member of the cohort.
    """
    match = _SITE.search(header)
    if match and (site := match[1].decode()) in plan.members:
        return site
    msg = "a contribution names a site outside the cohort; the sum was not opened"
    raise MalformedError(msg)
