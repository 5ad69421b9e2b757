"""The server's half of masked rounds: contributors agree on their set, then each reveals the seed of its own mask.

    a site drops out                           the cost
    before its update has arrived              none: the others reveal the seeds of the masks that they share with it
    after its update, before it agreed         another attempt with the others: the same updates, fresh masks
    after it agreed, before it revealed        the round: nobody reveals twice
    while a round is repeated without a liar   the round: a repetition is complete, or fails

Nothing is charged in any of these cases. In all but the first, the site is left out of the next rounds. The rules for
sites are in `privacy.crypto.agreement`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from flwr.app import Message

from privacy.crypto.agreement import absent_from, check_signed, set_digest, without_disputes
from privacy.crypto.masking import disputes, verify_pairs, verify_seed
from privacy.crypto.norm_signature import subject_of, verify_proof
from privacy.errors import AuthenticityError, CloisterError, MalformedError, ProtocolError
from privacy.failpoints import failpoint
from privacy.run.plan import read_plan
from transport.messages import AGREE, PROVE, REVEAL, ContributorSet, ProofRequest
from transport.run_messages import content_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from flwr.serverapp import Grid

    from privacy.codec.envelope import Contribution
    from privacy.codec.header import UpdateHeader
    from privacy.crypto.summation import EncryptedSum, RunningSum
    from privacy.run.plan import RoundPlan
    from strategies.membership import Membership
    from strategies.open_round import OpenRound
    from strategies.selection import Selection
    from transport.messages import Agreed, MessageKind

_DISPUTE = "it and another site committed to different shared masks"

Q = TypeVar("Q")
R = TypeVar("R")


class AgreedSum(NamedTuple):
    """A sum with its seeds, and each contributor's signature, in order."""

    total: EncryptedSum
    signatures: dict[str, bytes]


class Masking:
    """The server's half of a run's masked rounds."""

    def __init__(self, members: Membership, selection: Selection, colluding_sites: int, *, proofs: bool) -> None:
        self._members, self._selection, self._colluding, self._proofs = members, selection, colluding_sites, proofs

    def unmask(
        self, grid: Grid, current: OpenRound, total: RunningSum, attempt: Callable[[RoundPlan], RunningSum] | None
    ) -> EncryptedSum:
        """Have a masked sum's contributors agree on their set, in one or more attempts, and reveal their seeds.

        Args:
            grid: the grid to ask through.
            current: the open round; problems are noted in it.
            total: the sum of the updates that have arrived.
            attempt: collects the updates again under another plan; None if no contributor may be left out.

        Raises:
            ProtocolError: if fewer sites than the minimum are left, one is missing although none may be, or one
                withholds its seed or proof after all agreed.
        """
        while True:
            current.contributors = total.sites
            result, problems = self._agreed(grid, total)
            current.problems |= problems
            if not problems:
                break
            self._selection.withheld((site for site in problems if problems[site] != _DISPUTE), current.number)
            if attempt is None:
                msg = f"round {current.number}: without {', '.join(problems)} it cannot be repeated: {current.listed}"
                raise ProtocolError(msg)
            left = [site for site in total.sites if site not in problems]
            if len(left) < total.plan.minimum_cohort:
                msg = f"round {current.number}: too few sites are left: {current.listed}"
                raise ProtocolError(msg)
            total = attempt(next_attempt(total.plan, left, self._members.attention.seconds))
        failpoint("set-agreed")
        summed = result.total.digest if self._proofs else ""
        result, withheld = add_reveals(grid, self._members, result, total.headers, summed)
        self._note(withheld, current, "mask")
        failpoint("seeds-shown")
        if self._proofs:
            result, withheld = add_proofs(grid, self._members, result, total.headers)
            self._note(withheld, current, "proof")
        return result.total

    def _note(self, withheld: dict[str, str], current: OpenRound, part_name: str) -> None:
        current.problems |= withheld
        self._selection.withheld(withheld, current.number)
        check_all_shown(withheld, current.number, part_name)

    def _agreed(self, grid: Grid, total: RunningSum) -> tuple[AgreedSum, dict[str, str]]:
        """Have a sum's contributors agree on their set; return the agreed sum, and why sites are not part of it."""
        disputed = disputes(total.commitments, total.plan)
        self._selection.disputed(disputed)
        closed = AgreedSum(total.close(), {})
        if out := without_disputes(disputed, self._colluding):
            return closed, dict.fromkeys(out, _DISPUTE)
        return agree_on(grid, self._members, closed.total, total.headers)


def next_attempt(plan: RoundPlan, sites: Sequence[str], seconds: float) -> RoundPlan:
    """Return the plan of another attempt with these sites only."""
    return replace(plan, attempt=plan.attempt + 1, cohort=tuple(sites), deadline=time.time() + seconds)


def agree_on(
    grid: Grid, members: Membership, total: EncryptedSum, headers: Mapping[str, UpdateHeader]
) -> tuple[AgreedSum, dict[str, str]]:
    """Have all contributors sign their set; return the agreed sum, and why some did not sign."""
    question = ContributorSet(members.manifest, total.plan, total.contributions)
    plan, headers_by_site = read_plan(total.plan), {site: part.header for site, part in _by_site(headers, total)}
    absent, digest = absent_from(plan, headers_by_site), set_digest(headers_by_site)

    def check(site: str, agreed: Agreed) -> None:
        check_signed(plan, digest, site, agreed.signature, members.roster)
        verify_pairs(agreed.sealed, plan, headers[site].pairs, absent, members.roster.member(site).verification_key)

    agreed, problems = _ask(grid, members, AGREE, list(headers), question, check)
    parts = _by_site(headers, total)
    contributions = tuple(replace(part, pairs=agreed[site].sealed if site in agreed else b"") for site, part in parts)
    signatures = {site: agreed[site].signature for site in headers if site in agreed}
    return AgreedSum(replace(total, contributions=contributions), signatures), problems


def add_reveals(
    grid: Grid, members: Membership, agreed: AgreedSum, headers: Mapping[str, UpdateHeader], summed: str = ""
) -> tuple[AgreedSum, dict[str, str]]:
    """Ask all contributors for the seeds of their masks; return the sum with them, and why some gave none."""
    total, plan = agreed.total, read_plan(agreed.total.plan)
    question = ContributorSet(members.manifest, total.plan, total.contributions, agreed.signatures, summed)

    def check(site: str, seed: bytes) -> None:
        verify_seed(seed, plan, headers[site].mask, members.roster.member(site).verification_key)

    revealed, problems = _ask(grid, members, REVEAL, list(headers), question, check)
    parts = _by_site(headers, total)
    contributions = tuple(replace(part, reveal=revealed.get(site, b"")) for site, part in parts)
    return agreed._replace(total=replace(total, contributions=contributions)), problems


def add_proofs(
    grid: Grid, members: Membership, agreed: AgreedSum, headers: Mapping[str, UpdateHeader]
) -> tuple[AgreedSum, dict[str, str]]:
    """Ask all contributors for norm proofs; return the sum with them, and why some gave none."""
    total, plan = agreed.total, read_plan(agreed.total.plan)
    bare = replace(total, c0=(), codes=b"", c1=())
    question = ProofRequest(members.manifest, bare, agreed.signatures, total.digest)
    headers_by_site = {site: part.header for site, part in _by_site(headers, total)}
    subject = subject_of(plan.digest, set_digest(headers_by_site), total.digest)

    def check(site: str, proof: bytes) -> None:
        verify_proof(proof, subject, members.roster.member(site).verification_key)

    proofs, problems = _ask(grid, members, PROVE, list(headers), question, check)
    return agreed._replace(total=replace(total, proofs=tuple(proofs.get(site, b"") for site in headers))), problems


def check_all_shown(problems: Mapping[str, str], number: int, part_name: str) -> None:
    """Check that a masked sum can be opened.

    Raises:
        ProtocolError: if a seed or proof is missing; sites that revealed theirs reveal for no other attempt.
    """
    if problems:
        sites = ", ".join(problems)
        msg = (
            f"round {number}: without the {part_name} of {sites} the sum cannot be opened; "
            "the next round starts from its model"
        )
        raise ProtocolError(msg)


def _by_site(headers: Mapping[str, UpdateHeader], total: EncryptedSum) -> Iterator[tuple[str, Contribution]]:
    """Pair the contributors, in order, with their parts of a sum."""
    return zip(headers, total.contributions, strict=True)


def _ask(
    grid: Grid,
    members: Membership,
    kind: MessageKind[Q, R],
    sites: Sequence[str],
    question: Q,
    check: Callable[[str, R], object],
) -> tuple[dict[str, R], dict[str, str]]:
    """Ask sites, and ask again once if an answer was garbled; return answers, and why others did not answer."""
    answers, problems, garbled = ask_sites(grid, members, kind, question, sites, check)
    if garbled:
        again, still, _ = ask_sites(grid, members, kind, question, garbled, check)
        answers, problems = (
            answers | again,
            {site: why for site, why in problems.items() if site not in garbled} | still,
        )
    return answers, problems


def ask_sites(
    grid: Grid,
    members: Membership,
    kind: MessageKind[Q, R],
    question: Q,
    sites: Sequence[str],
    check: Callable[[str, R], object],
) -> tuple[dict[str, R], dict[str, str], list[str]]:
    """Ask sites; return answers, why others did not answer, and the sites whose answers were garbled."""
    answers, garbled, content = dict[str, R](), list[str](), kind.pack(question)
    problems = dict.fromkeys(sites, "it did not answer in time after sending its update")
    names, seconds = members.names(), members.attention.seconds
    messages = [Message(content, members.nodes[site], kind.name, ttl=seconds, group_id="masks")
                for site in sites if site in members.nodes]  # fmt: skip
    for node, reply in members.attention.ask(grid, messages, lambda: len(answers) == len(sites)):
        site = names[node]
        if site in answers:  # a duplicate, or another reply after the first
            continue
        try:
            answer = kind.read_reply(content_of(reply))
            check(site, answer)
            answers[site] = answer
            del problems[site]
        except CloisterError as error:
            problems[site] = str(error)
            if isinstance(error, (AuthenticityError, MalformedError)):
                garbled.append(site)
    return answers, problems, garbled
