"""Find out which member spoiled a masked sum that did not open: members judge updates, and check each other.

    what sites report  whom the server blames
    seeds              sites that signed a seed other than the committed one, or a false proof: all sites saw it
    codes              one member judges all bodies, one by one; if it rejects one, all others judge that body too
    values             nobody: a fault within the masks cannot be seen without opening updates

If more sites make a claim than may collude, at least one of them is honest. So an accusation confirmed by that many
sites holds, and an accuser contradicted by that many lies. If that many find every body right, the server did not add
them up.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from privacy.crypto.verdict import verify_verdict
from privacy.errors import RunError
from strategies.masking import ask_sites
from transport.mask_messages import CODES, SEEDS, Accusation
from transport.messages import JUDGE, Suspect

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from flwr.serverapp import Grid

    from privacy.codec.envelope import SignedUpdate
    from privacy.run.plan import RoundPlan
    from strategies.bodies import Bodies
    from strategies.membership import Membership
    from transport.mask_messages import Refusal, Verdict

_FALSE_SEED = "it signed a seed that does not match its commitment, or a false norm proof; it is left out"
_WRONG = "the code or tag of its update was wrong; it is left out"
_SLANDER = "it reported a correct update as wrong; it is left out"


class LiarFinder:
    """Finds liars, wherever more sites agree than may collude."""

    def __init__(self, members: Membership, colluding_sites: int) -> None:
        self._members, self._colluding = members, colluding_sites

    def is_convinced(self, sites: Collection[str]) -> bool:
        """Whether these are more sites than may collude, so that one of them is honest."""
        return len(sites) > self._colluding

    def liars(
        self, grid: Grid, plan: RoundPlan, bodies: Bodies, sites: Sequence[str], refusals: Mapping[str, Refusal]
    ) -> dict[str, str]:
        """Return which contributors spoiled a sum, and how; none, if that cannot be determined.

        Args:
            grid: the grid to ask through.
            plan: the sum's plan.
            bodies: the updates that were added.
            sites: the contributors.
            refusals: why each site did not open the sum.

        Raises:
            RunError: if the server did not add up what it was sent.
        """
        ((why, _),) = Counter(refusal.why for refusal in refusals.values()).most_common(1)
        if why == CODES:
            return self._judged(grid, plan, bodies, sites)
        named = Counter(liar for refusal in refusals.values() if why == SEEDS for liar in refusal.liars)
        return {site: _FALSE_SEED for site in sites if named[site] > self._colluding}

    def _judged(self, grid: Grid, plan: RoundPlan, bodies: Bodies, sites: Sequence[str]) -> dict[str, str]:
        liars, cleared = dict[str, str](), 0
        for judge in sites:
            if judge in liars:
                continue
            ends = time.monotonic() + self._members.attention.seconds
            for site in (member for member in sites if member not in liars):
                body = bodies.find(site)
                verdict = self._ask(grid, plan, body, [judge]).get(judge)
                if verdict is None or time.monotonic() > ends:  # silent or slow: another site judges
                    break
                if not verdict.right:
                    liars |= self._tried(grid, plan, body, site, Accusation(judge, verdict.signature), sites)
                if judge in liars:
                    break
            else:
                if liars:
                    return liars
                cleared += 1
            if cleared > self._colluding:
                msg = (
                    f"the sum of round {plan.round} does not open, although {cleared} sites found every update in it "
                    "correct: this server did not add them up correctly; check its memory and disk, and run the "
                    "same version everywhere"
                )
                raise RunError(msg)
        return liars

    def _tried(
        self, grid: Grid, plan: RoundPlan, body: SignedUpdate, site: str, accusation: Accusation, sites: Sequence[str]
    ) -> dict[str, str]:
        """Have all others judge a body that one site rejected; return the liar: its sender or the accuser."""
        others = [member for member in sites if member != accusation.site]
        verdicts = self._ask(grid, plan, body, others, accusation)
        right = sum(verdict.right for verdict in verdicts.values())
        if 1 + len(verdicts) - right > self._colluding:
            return {site: _WRONG}
        return {accusation.site: _SLANDER} if right > self._colluding else {}

    def _ask(
        self, grid: Grid, plan: RoundPlan, body: SignedUpdate, sites: Sequence[str], by: Accusation | None = None
    ) -> dict[str, Verdict]:
        def check(site: str, verdict: Verdict) -> None:
            key = self._members.roster.member(site).verification_key
            verify_verdict(key, plan, body.header, verdict.signature, right=verdict.right)

        suspect = Suspect(self._members.manifest, plan.to_bytes(), body, by)
        verdicts, problems, _ = ask_sites(grid, self._members, JUDGE, suspect, sites, check)
        self._members.problems |= problems
        return verdicts
