"""Which seeds a site shows, and when: the rules under which masks bear dropouts and still open once.

A masked round ends in two small messages after the updates. The server shows the signed headers of S, the members of
the plan's cohort whose updates it has.

    1. Agree   A member of S signs S, once a plan, and gives this plan's seeds of the masks that it shares with members
               outside S.
    2. Reveal  Shown that every member of S has signed this very S, it reveals the seed of its own mask, for one plan
               a round.

Both are written down before they are done (`Record`), and never done with anything else. Why this is enough: a site's
own mask comes off only when all honest members of S signed S. They gave away masks towards members outside S only, so
those between honest members of S stay on, and only the sum over all of them comes out (Bonawitz et al., CCS 2017, lemma
6.1). If one of them was shown another set, S is never complete. S has at least `colluding_sites` + 2 members, so that
two of them are honest. Sharing the seeds out with a threshold instead would not do: with three sites, one that colludes
with the server completes two sets.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from privacy.errors import ProtocolError
from privacy.signing import sign, verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from privacy.plan import RoundPlan
    from privacy.roster import Roster
    from privacy.signing import PrivateKey

KIND = "agree"


class Record(Protocol):
    """What a site did once: durable, and known to every process of the site."""

    def note(self, run: str, deed: str, value: str) -> None:
        """Note that a deed is about to be done, with this. The same again changes nothing.

        Raises:
            ProtocolError: if it was done with something else.
        """


def set_digest(headers: Mapping[str, bytes]) -> str:
    """Return the digest of the signed headers of a set of sites, whatever their order."""
    digests = (sha256(headers[site]).digest() for site in sorted(headers))
    return sha256(b"cloister set" + b"".join(digests)).hexdigest()


def absent_from(plan: RoundPlan, contributors: Mapping[str, object]) -> list[str]:
    """Return who of a plan's cohort is not among the contributors, in the plan's order."""
    return [site for site in plan.cohort if site not in contributors]


def check_set(plan: RoundPlan, headers: Mapping[str, bytes], own: tuple[str, bytes], minimum: int) -> None:
    """Check that a site may take part in a set of contributors.

    Args:
        plan: of which the headers are known to be.
        headers: of every contributor, in bytes.
        own: this site's name, and the header that it signed for this plan.
        minimum: the fewest contributors that keep the promise: of the colluding sites, two more.

    Raises:
        ProtocolError: if it may not.
    """
    site, header = own
    if headers.get(site) != header:
        msg = f"the sum of round {plan.round} is not of the update that {site} sent; it shows no seed"
        raise ProtocolError(msg)
    if len(headers) < minimum:
        msg = f"the sum of round {plan.round} is over {len(headers)} sites, fewer than {minimum}; {site} shows no seed"
        raise ProtocolError(msg)


def agree(record: Record, plan: RoundPlan, headers: Mapping[str, bytes], key: PrivateKey) -> bytes:
    """Sign a set of contributors, which was checked; this set and no other for this plan.

    Raises:
        ProtocolError: if the site has signed another set for this plan.
    """
    agreed = set_digest(headers)
    record.note(plan.run, f"agreeing on the contributors to plan {plan.digest}", agreed)
    return sign(key, KIND, _statement(plan, agreed))


def check_agreed(
    plan: RoundPlan, headers: Mapping[str, bytes], signatures: Mapping[str, bytes], roster: Roster
) -> None:
    """Check that all contributors signed this very set.

    Raises:
        AuthenticityError: if one did not.
    """
    statement = _statement(plan, set_digest(headers))
    for site in headers:
        verify(roster.member(site).verification_key, KIND, statement, signatures.get(site, b""))


def reveal(record: Record, plan: RoundPlan, commitment: str) -> None:
    """Note that a site reveals the seed of its own mask for this plan, and for no other of the round.

    Raises:
        ProtocolError: if it has revealed a seed for another plan of this round, or another seed.
    """
    record.note(plan.run, f"revealing for round {plan.round}", f"{plan.digest} {commitment}")


def _statement(plan: RoundPlan, agreed: str) -> bytes:
    return f"{plan.digest} {agreed}".encode()


def without_disputes(disputes: Sequence[tuple[str, str]], colluding_sites: int) -> set[str]:
    """Return whom to leave out so that no two of the others dispute their masks.

    Who disputes with more members than may collude lies. Of other disputes nobody can tell which of the two does: both
    are left out.
    """
    counts = Counter(site for pair in disputes for site in pair)
    liars = {site for site, count in counts.items() if count > colluding_sites}
    return liars | {site for pair in disputes if not liars & set(pair) for site in pair}
