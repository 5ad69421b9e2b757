"""Which seeds a site shows, and when: the rules under which masks bear dropouts and still open once.

A masked round ends in two small messages after the updates. The server shows the signed headers of S, the members of
the plan's cohort whose updates it has.

    1. Agree   A member of S signs S, once a plan, and gives this plan's seeds of the masks that it shares with members
               outside S.
    2. Reveal  Shown that every member of S has signed this very S, it reveals the seed of its own mask, for one plan
               a round.
    3. Repeat  After that, the site takes part in one kind of other plan of the round: over the same S, less members
               against whom it has checked evidence itself, and whole. If anybody else drops out, the round is lost.

All is written down before it is done (`Record`), and never done with anything else. Why this is enough: a site's
own mask comes off only when all honest members of S signed S. They gave away masks towards members outside S only, so
those between honest members of S stay on, and only the sum over all of them comes out (Bonawitz et al., CCS 2017, lemma
6.1). If one of them was shown another set, S is never complete. S has at least `colluding_sites` + 2 members, so that
two of them are honest. A repetition has the same honest members, and adds up the same updates: nothing new comes out.
Whoever has lost its update takes part in none.
Sharing the seeds out with a threshold instead would not do: with three sites, one that colludes with the server
completes two sets.
"""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

from privacy.crypto.signing import sign, verify
from privacy.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from privacy.crypto.signing import PrivateKey
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Roster

KIND = "agree"


class Record(Protocol):
    """What a site did once: durable, and known to every process of the site."""

    def note(self, run: str, deed: str, value: str) -> None:
        """Note that a deed is about to be done, with this. The same again changes nothing.

        Raises:
            ProtocolError: if it was done with something else.
        """

    def find(self, run: str, deed: str) -> str | None:
        """Return with what a deed was done, if it was."""


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


def check_repeat(record: Record, plan: RoundPlan, contributors: Collection[str]) -> None:
    """Check that a site which has revealed its seed for another plan of this round may take part in a sum of this one.

    Args:
        record: the site's.
        plan: the one that it is asked to take part in.
        contributors: to the sum, or, before that is known, the plan's cohort.

    Raises:
        ProtocolError: if the sum is not that of the set for which it revealed, whole, less members proven to lie.
    """
    before = _revealed(record, plan)
    if not before or before[-1] == plan.digest:
        return
    _, _, names = (record.find(plan.run, _agreeing(before[-1])) or "").partition(" ")
    earlier = set(names.split(","))
    proven = {site for site in earlier - plan.members if _is_proven(record, plan.run, site)}
    if set(contributors) != plan.members or not proven or plan.members | proven != earlier:
        msg = (
            f"{_revealing(plan, 0)} was done already, for another plan; it is repeated over the same sites alone, all "
            "of them but those that this one knows to have lied"
        )
        raise ProtocolError(msg)


def check_unchanged(record: Record, plan: RoundPlan, last: RoundPlan | None) -> None:
    """Check that a site which has revealed its seed for another plan of this round repeats it with the same update.

    In two sums over the same sites, another update would be all that differs.

    Args:
        record: the site's.
        plan: the one that it is asked to take part in.
        last: for which it has made the update that it would send again; nothing, if it would make a new one.

    Raises:
        ProtocolError: if it was for none of the plans for which it has revealed.
    """
    before = _revealed(record, plan)
    if before and (last is None or last.digest not in before):
        msg = f"{_revealing(plan, 0)} was done already, and the update is lost; no other takes its place in this round"
        raise ProtocolError(msg)


def accuse(record: Record, run: str, site: str, evidence: str) -> None:
    """Note evidence against a member, which this site has checked itself: the digest of what that member signed."""
    if not _is_proven(record, run, site):
        record.note(run, _lying(site), evidence)


def agree(record: Record, plan: RoundPlan, headers: Mapping[str, bytes], key: PrivateKey) -> bytes:
    """Sign a set of contributors, which was checked; this set and no other for this plan.

    Raises:
        ProtocolError: if the site has signed another set for this plan, or revealed its seed for another plan.
    """
    check_repeat(record, plan, headers)
    agreed = set_digest(headers)
    record.note(plan.run, _agreeing(plan.digest), f"{agreed} {','.join(sorted(headers))}")
    return sign(key, KIND, _statement(plan, agreed))


def check_signed(plan: RoundPlan, headers: Mapping[str, bytes], site: str, signature: bytes, roster: Roster) -> None:
    """Check that a site signed this very set.

    Raises:
        AuthenticityError: if it did not.
    """
    verify(roster.member(site).verification_key, KIND, _statement(plan, set_digest(headers)), signature)


def check_agreed(
    plan: RoundPlan, headers: Mapping[str, bytes], signatures: Mapping[str, bytes], roster: Roster
) -> None:
    """Check that all contributors signed this very set.

    Raises:
        AuthenticityError: if one did not.
    """
    for site in headers:
        check_signed(plan, headers, site, signatures.get(site, b""), roster)


def reveal(record: Record, plan: RoundPlan, headers: Mapping[str, bytes], commitment: str) -> None:
    """Note that a site reveals the seed of its own mask for this plan, and for no other of the round but a repetition.

    Raises:
        ProtocolError: if it has revealed a seed for another plan that this does not repeat, or another seed.
    """
    check_repeat(record, plan, headers)
    before = _revealed(record, plan)
    number = len(before) - (plan.digest in before)
    record.note(plan.run, _revealing(plan, number), f"{plan.digest} {commitment}")


def _agreeing(plan: str) -> str:
    return f"agreeing on the contributors to plan {plan}"


def _revealing(plan: RoundPlan, number: int) -> str:
    return f"revealing for round {plan.round}" + (f", repetition {number}" if number else "")


def _lying(site: str) -> str:
    return f"evidence against {site}"


def _is_proven(record: Record, run: str, site: str) -> bool:
    return record.find(run, _lying(site)) is not None


def _revealed(record: Record, plan: RoundPlan) -> list[str]:
    """Return the plans of this round for which a site has revealed its seeds, in order."""
    found = list[str]()
    while (done := record.find(plan.run, _revealing(plan, len(found)))) is not None:
        found.append(done.partition(" ")[0])
    return found


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
