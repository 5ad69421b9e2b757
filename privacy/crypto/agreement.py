"""Decide which seeds a site reveals, and when, so that masks tolerate dropouts and still open only once.

After the updates, a masked round has two short exchanges. The server shows each site the signed headers of S, the
members of the plan's cohort whose updates have arrived.

    1. Agree   A member of S signs S, at most one S per plan, and releases this plan's seeds of the masks that it shares
               with members outside S.
    2. Reveal  Once it has seen that every member of S signed the same S, it reveals the seed of its own mask, for one
               plan per round.
    3. Repeat  After revealing, a site joins another plan of the round only if its cohort is S without members against
               whom the site has checked evidence itself, and every site of that cohort contributes. If anyone else
               drops out, the round is lost.

A site writes each step to disk before it acts (`Record`), and never repeats the step with a different value. This is
sufficient: a site's own mask comes off only when all honest members of S have signed S. They released masks shared with
members outside S only, so the masks between honest members of S stay on and only the sum over all of these members is
revealed (Bonawitz et al., CCS 2017, lemma 6.1). If an honest member was shown another set, S never gets all its
signatures. S has at least `colluding_sites` + 2 members, so at least two are honest. A repetition has the same honest
members and adds the same updates, so it reveals nothing new. A site that has lost its update joins no repetition.

Threshold secret sharing of the seeds would not be enough: with three sites, one that colludes with the server can
complete two sets.
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
    """Durable record of what a site did once, shared by all processes of the site."""

    def note(self, run: str, action: str, value: str) -> None:
        """Record that the site is about to act with this value. Recording the same value again has no effect.

        Raises:
            ProtocolError: if the action was recorded with another value.
        """

    def find(self, run: str, action: str) -> str | None:
        """Return the value recorded for an action, or None."""


def set_digest(headers: Mapping[str, bytes]) -> str:
    """Return the digest of the signed headers of a set of sites; their order does not matter."""
    digests = (sha256(headers[site]).digest() for site in sorted(headers))
    return sha256(b"cloister set" + b"".join(digests)).hexdigest()


def absent_from(plan: RoundPlan, contributors: Mapping[str, object]) -> list[str]:
    """Return the members of a plan's cohort that did not contribute, in the plan's order."""
    return [site for site in plan.cohort if site not in contributors]


def check_set(plan: RoundPlan, headers: Mapping[str, bytes], own: tuple[str, bytes], minimum: int) -> None:
    """Check that a site may take part in a set of contributors.

    Args:
        plan: the plan for which the headers were verified.
        headers: every contributor's header, as bytes.
        own: this site's name and the header that it signed for this plan.
        minimum: the fewest contributors that keep updates secret: two more than the colluding sites.

    Raises:
        ProtocolError: if the site may not take part.
    """
    site, header = own
    if headers.get(site) != header:
        msg = f"the sum of round {plan.round} does not include the update that {site} sent; {site} reveals no seed"
        raise ProtocolError(msg)
    if len(headers) < minimum:
        msg = (
            f"the sum of round {plan.round} has too few contributors ({len(headers)} of {minimum}); {site} reveals "
            "no seed"
        )
        raise ProtocolError(msg)


def check_repeat(record: Record, plan: RoundPlan, contributors: Collection[str]) -> None:
    """Check that a site which has revealed its seed for another plan of this round may take part in this one.

    Args:
        record: the site's record.
        plan: the plan that the site is asked to join.
        contributors: the contributors to the sum; before they are known, the plan's cohort.

    Raises:
        ProtocolError: if the contributors are not exactly the set for which the site revealed, less proven liars.
    """
    before = _revealed(record, plan)
    if not before or before[-1] == plan.digest:
        return
    _, _, names = (record.find(plan.run, _agreeing(before[-1])) or "").partition(" ")
    earlier = set(names.split(","))
    proven = {site for site in earlier - plan.members if _is_proven(record, plan.run, site)}
    if set(contributors) != plan.members or not proven or plan.members | proven != earlier:
        msg = (
            f"the seed for round {plan.round} was already revealed, for another plan; a repetition may leave out "
            "only contributors that this site knows to have sent something false, and must leave out all of them"
        )
        raise ProtocolError(msg)


def check_unchanged(record: Record, plan: RoundPlan, last: RoundPlan | None) -> None:
    """Check that a site which has revealed its seed for another plan of this round repeats it with the same update.

    With a new update, two sums over the same sites would differ in that update alone.

    Args:
        record: the site's record.
        plan: the plan that the site is asked to join.
        last: the plan for which the site made the update that it would resend; None if it would make a new one.

    Raises:
        ProtocolError: if the site revealed for other plans, and `last` is not one of them.
    """
    before = _revealed(record, plan)
    if before and (last is None or last.digest not in before):
        msg = (
            f"the seed for round {plan.round} was already revealed, and the update is lost; no other update "
            "replaces it in this round"
        )
        raise ProtocolError(msg)


def accuse(record: Record, run: str, site: str, evidence: str) -> None:
    """Record evidence against a member that this site checked itself: the digest of what that member signed."""
    if not _is_proven(record, run, site):
        record.note(run, _lying(site), evidence)


def agree(record: Record, plan: RoundPlan, headers: Mapping[str, bytes], key: PrivateKey) -> bytes:
    """Sign a checked set of contributors, the only one for this plan.

    Raises:
        ProtocolError: if the site has signed another set for this plan, or revealed its seed for another plan of the
            round that this one does not repeat.
    """
    check_repeat(record, plan, headers)
    agreed = set_digest(headers)
    record.note(plan.run, _agreeing(plan.digest), f"{agreed} {','.join(sorted(headers))}")
    return sign(key, KIND, _statement(plan, agreed))


def check_signed(plan: RoundPlan, agreed: str, site: str, signature: bytes, roster: Roster) -> None:
    """Check that a site signed exactly the set with this digest.

    Raises:
        AuthenticityError: if it did not.
    """
    verify(roster.member(site).verification_key, KIND, _statement(plan, agreed), signature)


def check_agreed(
    plan: RoundPlan, headers: Mapping[str, bytes], signatures: Mapping[str, bytes], roster: Roster
) -> None:
    """Check that all contributors signed exactly this set.

    Raises:
        AuthenticityError: if one did not.
    """
    agreed = set_digest(headers)
    for site in headers:
        check_signed(plan, agreed, site, signatures.get(site, b""), roster)


def reveal(record: Record, plan: RoundPlan, headers: Mapping[str, bytes], commitment: str) -> None:
    """Record that a site reveals the seed of its own mask for this plan, the round's only one apart from repetitions.

    Raises:
        ProtocolError: if it has revealed another seed, or revealed for another plan that this one does not repeat.
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
    """Return the digests of this round's plans for which a site has revealed its seed, in order."""
    digests = list[str]()
    while (done := record.find(plan.run, _revealing(plan, len(digests)))) is not None:
        digests.append(done.partition(" ")[0])
    return digests


def _statement(plan: RoundPlan, agreed: str) -> bytes:
    return f"{plan.digest} {agreed}".encode()


def without_disputes(disputes: Sequence[tuple[str, str]], colluding_sites: int) -> set[str]:
    """Return the sites to leave out so that no two of the others dispute their masks.

    A site that disputes with more members than may collude is lying. In any other dispute nobody can tell which of the
    two sites lies, so both are left out.
    """
    counts = Counter(site for pair in disputes for site in pair)
    liars = {site for site, count in counts.items() if count > colluding_sites}
    return liars | {site for pair in disputes if not liars & set(pair) for site in pair}
