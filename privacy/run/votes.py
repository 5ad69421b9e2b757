"""The vote on a round's model: one bit a site, by randomised response, signed; and what follows from all of them.

A site says whether the model got worse on its held-out records, and turns its answer over with the chance 1/(1 + e^ε).
Whatever the answer was computed from, and however, either bit is at most e^ε times as likely with other records: so the
bit is ε-differentially private for all held-out records together (Warner 1965; Dwork and Roth 2014, section 3.2). It is
drawn once for a model and never again.

A vote is signed, for one round of one run, from one model to another. The model is undone if half of the votes or more
reject it, of at least as many as the run's minimum cohort. All bits are turned over with one chance, so that half or
more reject just if the unbiased estimate of how many found it worse,

    (rejected − votes / (1 + e^ε)) · (e^ε + 1) / (e^ε − 1)

is half of the votes or more: sites count signatures, and need no estimate to come to the same end. A server can keep
votes to itself, and so decide which of two models that sites had goes on; it could as well have released nothing.

    >>> round(errors(4, 1, 2.0).missed, 3), round(errors(4, 1, 2.0).undone, 3)
    (0.039, 0.072)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from privacy.crypto.signing import SIGNATURE_BYTES, sign, verify
from privacy.errors import MalformedError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from privacy.crypto.signing import PrivateKey
    from privacy.noise.randomness import Randomness
    from privacy.run.roster import Roster

KIND = "vote"


@dataclass(frozen=True)
class Question:
    """What is voted on: the model that a round of a run led to, and the one before it, by their digests."""

    run: str
    round: int
    before: str
    after: str

    def statement(self, *, reject: bool) -> bytes:
        """Return what a vote signs."""
        return f"{self.run} {self.round} {self.before} {self.after} {'reject' if reject else 'keep'}".encode()


@dataclass(frozen=True)
class Vote:
    """A site's answer, which luck may have turned over, and its signature."""

    reject: bool
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return it as it travels and is kept."""
        return bytes([self.reject]) + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> Vote:
        """Undo `to_bytes`.

        Raises:
            MalformedError: if it is no vote.
        """
        if len(data) != 1 + SIGNATURE_BYTES or data[0] > 1:
            msg = "a vote is malformed; both sides must run the same version"
            raise MalformedError(msg)
        return cls(bool(data[0]), data[1:])


def respond(answer: bool, epsilon: float, randomness: Randomness) -> bool:  # noqa: FBT001 - the bit it is about
    """Return an answer, turned over with the chance 1 / (1 + e^ε), rounded up to a multiple of 2⁻⁵³."""
    return answer ^ bool(randomness.uniform(1)[0] < turned(epsilon))


def turned(epsilon: float) -> float:
    """Return the chance with which an answer is turned over."""
    return 1 / (1 + math.exp(epsilon))


def cast(question: Question, key: PrivateKey, *, reject: bool) -> Vote:
    """Sign a vote."""
    return Vote(reject, sign(key, KIND, question.statement(reject=reject)))


def check_vote(question: Question, site: str, vote: Vote, roster: Roster) -> None:
    """Check that a site cast a vote on this very question.

    Raises:
        AuthenticityError: if it did not.
    """
    verify(roster.member(site).verification_key, KIND, question.statement(reject=vote.reject), vote.signature)


def check_rejected(
    question: Question, votes: Mapping[str, Vote], sites: Collection[str], minimum: int, roster: Roster
) -> None:
    """Check that a model is to be undone.

    Args:
        question: which model.
        votes: by site.
        sites: those of the run, who may vote.
        minimum: the run's minimum cohort.
        roster: whose keys the votes must be signed with.

    Raises:
        AuthenticityError: if one is not that site's vote on this question.
        ProtocolError: if they are not votes of this run's sites, or do not reject it.
    """
    if not votes.keys() <= set(sites):
        msg = "votes are of sites that the run does not name; nothing was undone"
        raise ProtocolError(msg)
    for site, vote in votes.items():
        check_vote(question, site, vote, roster)
    if not is_rejected(votes.values(), minimum):
        msg = f"the votes do not reject the model of round {question.round}; nothing was undone"
        raise ProtocolError(msg)


def is_rejected(votes: Collection[Vote], minimum: int) -> bool:
    """Whether so many sites voted that it counts, and half of them or more to reject."""
    return len(votes) >= minimum and 2 * sum(vote.reject for vote in votes) >= len(votes)


def estimate(votes: Collection[Vote], epsilon: float) -> float:
    """Return the unbiased estimate of how many found the model worse."""
    chance = turned(epsilon)
    return (sum(vote.reject for vote in votes) - len(votes) * chance) / (1 - 2 * chance)


class Errors(NamedTuple):
    """How likely a vote is wrong where all honest sites answer alike."""

    missed: float  # that a spoiled model stays, for which those who spoiled it vote
    undone: float  # that a good one is undone, by luck alone


def errors(voters: int, liars: int, epsilon: float) -> Errors:
    """Return how likely a vote of so many sites is wrong."""
    chance = turned(epsilon)
    needed = (voters + 1) // 2
    return Errors(1 - _at_least(needed, voters - liars, 1 - chance), _at_least(needed, voters, chance))


def _at_least(needed: int, trials: int, chance: float) -> float:
    return math.fsum(
        math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        for count in range(needed, trials + 1)
    )
