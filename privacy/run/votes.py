"""Vote on a round's model: each site signs one bit, given by randomised response; the votes may undo the model.

A site answers whether the model got worse on its held-out records, and flips its answer with probability 1/(1 + e^ε).
However the answer was computed, each bit is at most e^ε times as likely as with any other records. So the bit is
ε-differentially private for all held-out records together (Warner 1965; Dwork and Roth 2014, section 3.2). It is drawn
once per model and never again.

A signed vote is bound to one round of one run and to the models before and after it. The model is undone if there are
at least as many votes as the run's minimum cohort, and at least half of them reject it. Since all bits are flipped with
the same probability, at least half reject exactly when the unbiased estimate of how many found the model worse,

    (rejected − votes / (1 + e^ε)) · (e^ε + 1) / (e^ε − 1)

is at least half of the votes. So sites count votes and need no estimate. A server can withhold votes, and so decide
which of two models the sites continue from; it could as well have released nothing.

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
    """The question of a vote: a round's model and the model before it, by their digests."""

    run: str
    round: int
    before: str
    after: str

    def statement(self, *, reject: bool) -> bytes:
        """Return the bytes that a vote signs."""
        return f"{self.run} {self.round} {self.before} {self.after} {'reject' if reject else 'keep'}".encode()


@dataclass(frozen=True)
class Vote:
    """A site's randomised answer and its signature."""

    reject: bool
    signature: bytes

    def to_bytes(self) -> bytes:
        """Return the form in which a vote is sent and stored."""
        return bytes([self.reject]) + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> Vote:
        """Undo `to_bytes`.

        Raises:
            MalformedError: if `data` is not a vote.
        """
        if len(data) != 1 + SIGNATURE_BYTES or data[0] > 1:
            msg = "a vote is malformed; run the same version everywhere"
            raise MalformedError(msg)
        return cls(bool(data[0]), data[1:])


def respond(answer: bool, epsilon: float, randomness: Randomness) -> bool:  # noqa: FBT001 - the bit itself
    """Return an answer, flipped with probability 1 / (1 + e^ε), rounded up to a multiple of 2⁻⁵³."""
    return answer ^ bool(randomness.uniform(1)[0] < turned(epsilon))


def turned(epsilon: float) -> float:
    """Return the probability with which an answer is flipped."""
    return 1 / (1 + math.exp(epsilon))


def cast(question: Question, key: PrivateKey, *, reject: bool) -> Vote:
    """Sign a vote."""
    return Vote(reject, sign(key, KIND, question.statement(reject=reject)))


def check_vote(question: Question, site: str, vote: Vote, roster: Roster) -> None:
    """Check that a site cast a vote on exactly this question.

    Raises:
        AuthenticityError: if it did not.
    """
    verify(roster.member(site).verification_key, KIND, question.statement(reject=vote.reject), vote.signature)


def check_rejected(
    question: Question, votes: Mapping[str, Vote], sites: Collection[str], minimum: int, roster: Roster
) -> None:
    """Check that valid votes reject a model, so that it must be undone.

    Args:
        question: the model voted on.
        votes: the votes, by site.
        sites: the run's sites, which may vote.
        minimum: the run's minimum cohort.
        roster: the roster with the sites' keys.

    Raises:
        AuthenticityError: if a vote is not that site's on this question.
        ProtocolError: if a vote is not from a site of this run, or the votes do not reject the model.
    """
    if not votes.keys() <= set(sites):
        msg = "there are votes of sites that the run does not name; nothing was undone"
        raise ProtocolError(msg)
    for site, vote in votes.items():
        check_vote(question, site, vote, roster)
    if not is_rejected(votes.values(), minimum):
        msg = f"the votes do not reject the model of round {question.round}; nothing was undone"
        raise ProtocolError(msg)


def is_rejected(votes: Collection[Vote], minimum: int) -> bool:
    """Return whether enough sites voted, and at least half of them to reject."""
    return len(votes) >= minimum and 2 * sum(vote.reject for vote in votes) >= len(votes)


def estimate(votes: Collection[Vote], epsilon: float) -> float:
    """Return the unbiased estimate of how many sites found the model worse."""
    chance = turned(epsilon)
    return (sum(vote.reject for vote in votes) - len(votes) * chance) / (1 - 2 * chance)


class Errors(NamedTuple):
    """The probabilities that a vote goes wrong when all honest sites give the same answer."""

    missed: float  # a spoiled model stays; the liars vote to keep it
    undone: float  # a good model is undone, by chance alone


def errors(voters: int, liars: int, epsilon: float) -> Errors:
    """Return the probabilities that a vote among `voters` sites, `liars` included, goes wrong."""
    chance = turned(epsilon)
    needed = (voters + 1) // 2
    return Errors(1 - _at_least(needed, voters - liars, 1 - chance), _at_least(needed, voters, chance))


def _at_least(needed: int, trials: int, chance: float) -> float:
    return math.fsum(
        math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        for count in range(needed, trials + 1)
    )
