"""Every kind of message between the server and a site: question, answer, and the encoding of both.

    kind           the server sends                           a site answers
    query          Query          does it take part?          Ready
    query.lead     a number       make keys for this epoch    Keys, with a letter for each member
    query.accept   Letter         keys from a leader          Keys
    query.pairs    Pairs          mask secrets from others    Shared
    train          Order          train a round               Trained
    query.agree    ContributorSet who contributed             Agreed
    query.reveal   ContributorSet reveal the seed of a mask   the sealed seed, signed
    query.prove    ProofRequest   prove an update's norm      the proof, signed
    evaluate       Delivery       open a sum                  RoundOutcome or, if the sum is masked, a Refusal
    query.judge    Suspect        is this update right?       Verdict
    query.undo     Undo           undo a round, by votes      digest of the previous model

All messages except those about keys carry the signed manifest. A site checks it before it reads the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from transport import key_messages, mask_messages, run_messages, vote_messages
from transport.ledger_head import find_head, put_head, read_head
from transport.receipts import find_receipt, put_receipt
from transport.reports import ReportedNumbers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flwr.app import RecordDict

    from privacy.codec.envelope import Contribution, SignedUpdate
    from privacy.crypto.summation import EncryptedSum
    from privacy.ledger.ledger_head import SignedHead
    from privacy.run.votes import Vote
    from transport.mask_messages import Accusation, Refusal
    from transport.receipts import Receipt
    from transport.run_messages import Opened, Readiness

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class MessageKind(Generic[Q, R]):
    """A kind of message. Reading content of another kind raises `MalformedError`."""

    name: str  # Flower's message type
    pack: Callable[[Q], RecordDict]
    read: Callable[[RecordDict], Q]
    pack_reply: Callable[[R], RecordDict]
    read_reply: Callable[[RecordDict], R]


@dataclass(frozen=True)
class Query:
    """Ask whether a site takes part in a run."""

    manifest: bytes
    head: SignedHead | None = None  # the site's last ledger head at the server
    sent: float = field(default_factory=time.time)  # the time on the server's clock


@dataclass(frozen=True)
class Ready:
    """Say that a site takes part."""

    readiness: Readiness
    head: SignedHead | None  # of its ledger


@dataclass(frozen=True)
class Letter:
    """Keys of an epoch, sealed to a site."""

    leader: str
    sealed: bytes


@dataclass(frozen=True)
class Keys:
    """The keys that a site has now, its sealed mask secrets and, if it leads, its letters."""

    epoch: int
    fingerprint: str
    letters: Mapping[str, bytes]  # by recipient
    pairs: Mapping[str, bytes]


@dataclass(frozen=True)
class Pairs:
    """Sealed mask secrets that others made for a site under these keys, by sender."""

    fingerprint: str
    letters: Mapping[str, bytes]


@dataclass(frozen=True)
class Shared:
    """A site's sealed mask secrets, by recipient, and the sites with which it now shares one."""

    letters: Mapping[str, bytes]
    names: list[str]


@dataclass(frozen=True)
class Order:
    """Train a round."""

    manifest: bytes
    plan: bytes
    sums: Sequence[EncryptedSum] = ()  # that the site has not opened yet
    head: SignedHead | None = None  # the site's last ledger head at the server


@dataclass(frozen=True)
class Trained:
    """An update, and the numbers that its site's policy lets it report."""

    update: SignedUpdate
    report: ReportedNumbers = field(default_factory=ReportedNumbers)
    head: SignedHead | None = None  # of its ledger


@dataclass(frozen=True)
class ContributorSet:
    """The contributors to a plan's sum; to reveal a mask, also their signatures and the sum's digest."""

    manifest: bytes
    plan: bytes
    contributions: Sequence[Contribution]  # headers and signatures only
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    summed: str = ""


@dataclass(frozen=True)
class Agreed:
    """A site's signature of the set of contributors, and the sealed seeds of masks shared with absent sites."""

    signature: bytes
    sealed: bytes


@dataclass(frozen=True)
class ProofRequest:
    """A sum without its ciphertexts."""

    manifest: bytes
    total: EncryptedSum
    signatures: Mapping[str, bytes]
    summed: str  # digest of the whole sum

    @property
    def plan(self) -> bytes:
        """The plan of the sum."""
        return self.total.plan


@dataclass(frozen=True)
class Delivery:
    """A sum to open. Opening moves it out of `sums`, so that its bytes are in memory only once."""

    manifest: bytes
    sums: list[EncryptedSum]  # one sum, until it is taken
    receipt: Receipt | None = None  # why the site's own update is not in the sum


@dataclass(frozen=True)
class RoundOutcome:
    """The outcome of opening a sum, with the metrics that the site's policy lets it report, and its vote, if any."""

    opened: Opened
    metrics: ReportedNumbers = field(default_factory=ReportedNumbers)
    vote: Vote | None = None


@dataclass(frozen=True)
class Suspect:
    """An update to judge, and another site's accusation, if any."""

    manifest: bytes
    plan: bytes
    update: SignedUpdate
    accusation: Accusation | None = None


@dataclass(frozen=True)
class Undo:
    """The votes that undo a round."""

    manifest: bytes
    round: int
    before: str  # digest of the model before it
    after: str
    votes: Mapping[str, Vote]


def _read_query(content: RecordDict) -> Query:
    return Query(run_messages.read_manifest(content), read_head(content), run_messages.read_sent(content))


def _read_ready(content: RecordDict) -> Ready:
    return Ready(run_messages.read_readiness(content), find_head(content))


def _read_led(content: RecordDict) -> Keys:
    return Keys(
        *key_messages.read_keys(content), key_messages.read_letters(content), key_messages.read_own_pairs(content)
    )


def _read_keys(content: RecordDict) -> Keys:
    return Keys(*key_messages.read_keys(content), {}, key_messages.read_own_pairs(content))


def _pack_keys(keys: Keys) -> RecordDict:
    return key_messages.pack_keys(keys.epoch, keys.fingerprint, keys.letters, keys.pairs)


def _read_shared(content: RecordDict) -> Shared:
    names = key_messages.read_shared(content)
    return Shared(key_messages.read_own_pairs(content), names)


def _read_order(content: RecordDict) -> Order:
    head = read_head(content)
    return Order(run_messages.read_manifest(content), *run_messages.read_train(content), head)


def _read_trained(content: RecordDict) -> Trained:
    return Trained(*run_messages.read_update(content), find_head(content))


def _pack_shown(question: ContributorSet) -> RecordDict:
    return mask_messages.pack_contributors(
        question.manifest, question.plan, question.contributions, question.signatures, question.summed
    )


def _read_set(content: RecordDict) -> ContributorSet:
    return ContributorSet(run_messages.read_manifest(content), *mask_messages.read_contributors(content))


def _read_shown(content: RecordDict) -> ContributorSet:
    start = run_messages.read_manifest(content), *mask_messages.read_contributors(content)
    return ContributorSet(*start, mask_messages.read_signatures(content), mask_messages.read_summed(content))


def _read_to_prove(content: RecordDict) -> ProofRequest:
    manifest, total = run_messages.read_manifest(content), run_messages.read_sum(content)
    return ProofRequest(manifest, total, mask_messages.read_signatures(content), mask_messages.read_summed(content))


def _pack_delivery(delivery: Delivery) -> RecordDict:
    content = run_messages.pack_sum(delivery.manifest, *delivery.sums)
    return put_receipt(content, delivery.receipt) if delivery.receipt else content


def _read_delivery(content: RecordDict) -> Delivery:
    manifest, receipt = run_messages.read_manifest(content), find_receipt(content)
    return Delivery(manifest, [run_messages.take_sum(content)], receipt)


def _pack_outcome(outcome: RoundOutcome | Refusal) -> RecordDict:
    if isinstance(outcome, RoundOutcome):
        return vote_messages.put_vote(run_messages.pack_opened(outcome.opened, outcome.metrics.numbers), outcome.vote)
    return mask_messages.pack_refusal(outcome)


def _read_outcome(content: RecordDict) -> RoundOutcome | Refusal:
    if refusal := mask_messages.find_refusal(content):
        return refusal
    return RoundOutcome(*run_messages.read_opened(content), vote_messages.find_vote(content))


QUERY = MessageKind[Query, Ready](
    "query",
    lambda query: put_head(run_messages.pack_query(query.manifest, query.sent), query.head), _read_query,
    lambda ready: put_head(run_messages.pack_readiness(ready.readiness), ready.head), _read_ready,
)  # fmt: skip
LEAD = MessageKind[int, Keys]("query.lead", key_messages.pack_lead, key_messages.read_lead, _pack_keys, _read_led)
ACCEPT = MessageKind[Letter, Keys](
    "query.accept",
    lambda letter: key_messages.pack_letter(letter.leader, letter.sealed),
    lambda content: Letter(*key_messages.read_letter_from(content)),
    _pack_keys, _read_keys,
)  # fmt: skip
PAIRS = MessageKind[Pairs, Shared](
    "query.pairs",
    lambda pairs: key_messages.pack_pairs(pairs.fingerprint, pairs.letters),
    lambda content: Pairs(*key_messages.read_pairs(content)),
    lambda shared: key_messages.pack_shared(shared.letters, shared.names), _read_shared,
)  # fmt: skip
TRAIN = MessageKind[Order, Trained](
    "train",
    lambda order: put_head(run_messages.pack_train(order.manifest, order.plan, order.sums), order.head), _read_order,
    lambda reply: put_head(run_messages.pack_update(reply.update, reply.report.numbers), reply.head), _read_trained,
)  # fmt: skip
AGREE = MessageKind[ContributorSet, Agreed](
    "query.agree", _pack_shown, _read_set,
    lambda agreed: mask_messages.pack_agreed(agreed.signature, agreed.sealed),
    lambda content: Agreed(*mask_messages.read_agreed(content)),
)  # fmt: skip
REVEAL = MessageKind[ContributorSet, bytes](
    "query.reveal", _pack_shown, _read_shown, mask_messages.pack_revealed, mask_messages.read_revealed
)
PROVE = MessageKind[ProofRequest, bytes](
    "query.prove",
    lambda query: mask_messages.pack_to_prove(query.manifest, query.total, query.signatures, query.summed),
    _read_to_prove,
    mask_messages.pack_proof, mask_messages.read_proof,
)  # fmt: skip
EVALUATE = MessageKind[Delivery, RoundOutcome | mask_messages.Refusal](
    "evaluate", _pack_delivery, _read_delivery, _pack_outcome, _read_outcome
)
JUDGE = MessageKind[Suspect, mask_messages.Verdict](
    "query.judge",
    lambda body: mask_messages.pack_body(body.manifest, body.plan, body.update, body.accusation),
    lambda content: Suspect(run_messages.read_manifest(content), *mask_messages.read_body(content)),
    mask_messages.pack_verdict, mask_messages.read_verdict,
)  # fmt: skip
UNDO = MessageKind[Undo, str](
    "query.undo",
    lambda undo: vote_messages.pack_votes(undo.manifest, undo.round, undo.before, undo.after, undo.votes),
    lambda content: Undo(run_messages.read_manifest(content), *vote_messages.read_votes(content)),
    vote_messages.pack_undone, vote_messages.read_undone,
)  # fmt: skip

KINDS: dict[str, MessageKind[Any, Any]] = {
    kind.name: kind
    for kind in (QUERY, LEAD, ACCEPT, PAIRS, TRAIN, AGREE, REVEAL, PROVE, EVALUATE, JUDGE, UNDO)
}  # fmt: skip
"""All kinds of messages, by name."""
