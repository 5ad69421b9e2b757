"""Every kind of message between the server and a site: what the server asks, what a site answers, and how both travel.

    kind           the server asks                          a site answers
    query          Query        who takes part in a run     Ready
    query.lead     a number     for the keys of an epoch    Keys, with a letter for each member
    query.accept   Letter       that a leader wrote         Keys
    query.pairs    Pairs        secrets of masks            Shared
    train          Order        a round's update            Trained
    query.agree    Shown        who contributed             Agreed
    query.reveal   Shown        the seed of a mask          the sealed seed, signed
    query.prove    ToProve      how long an update is       the proof, signed
    evaluate       Delivery     a sum, to be opened         Reached, or, if it has masks, a Refusal
    query.judge    Suspect      a member's update           Verdict
    query.undo     Undo         a round, by these votes     digest of the model before

All but those about keys carry the signed manifest, by which a site admits them before it reads the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from transport import ceremony, contents, masking, votes
from transport.ledger_head import find_head, put_head, read_head
from transport.receipts import find_receipt, put_receipt
from transport.reports import Told

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flwr.app import RecordDict

    from privacy.codec.envelope import Contribution, SignedUpdate
    from privacy.crypto.summation import EncryptedSum
    from privacy.ledger.ledger_head import SignedHead
    from privacy.run.votes import Vote
    from transport.contents import Opened, Readiness
    from transport.masking import Accusation, Refusal
    from transport.receipts import Receipt

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class MessageKind(Generic[Q, R]):
    """A kind of message. Reading raises `MalformedError` for what is none of its kind."""

    name: str  # Flower's message type
    pack: Callable[[Q], RecordDict]
    read: Callable[[RecordDict], Q]
    pack_reply: Callable[[R], RecordDict]
    read_reply: Callable[[RecordDict], R]


@dataclass(frozen=True)
class Query:
    """Does a site take part in a run?"""

    manifest: bytes
    head: SignedHead | None = None  # the last of its ledger that the server has
    sent: float = field(default_factory=time.time)  # what the server's clock shows


@dataclass(frozen=True)
class Ready:
    """It does."""

    readiness: Readiness
    head: SignedHead | None  # of its ledger


@dataclass(frozen=True)
class Letter:
    """Keys of an epoch, sealed to a site."""

    leader: str
    sealed: bytes


@dataclass(frozen=True)
class Keys:
    """Which keys a site has now; with the letters that it wrote as their leader, and its secrets of masks, sealed."""

    epoch: int
    fingerprint: str
    letters: Mapping[str, bytes]  # by recipient
    pairs: Mapping[str, bytes]


@dataclass(frozen=True)
class Pairs:
    """Secrets of masks that others made for a site under these keys, by sender."""

    fingerprint: str
    letters: Mapping[str, bytes]


@dataclass(frozen=True)
class Shared:
    """The secrets of masks that a site made, by recipient; and with whom it shares one now."""

    letters: Mapping[str, bytes]
    names: list[str]


@dataclass(frozen=True)
class Order:
    """Train a round."""

    manifest: bytes
    plan: bytes
    sums: Sequence[EncryptedSum] = ()  # that the site has not opened yet
    head: SignedHead | None = None  # the last of its ledger that the server has


@dataclass(frozen=True)
class Trained:
    """An update, and what its site's policy lets out beside it."""

    update: SignedUpdate
    report: Told = field(default_factory=Told)
    head: SignedHead | None = None  # of its ledger


@dataclass(frozen=True)
class Shown:
    """Who contributed to a plan's sum; where a mask is to come off, also what they signed, and the sum's digest."""

    manifest: bytes
    plan: bytes
    contributions: Sequence[Contribution]  # headers and signatures alone
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    summed: str = ""


@dataclass(frozen=True)
class Agreed:
    """A site's signature of who contributed, and the sealed seeds of the masks that it shares with the absent."""

    signature: bytes
    sealed: bytes


@dataclass(frozen=True)
class ToProve:
    """All that there is of a sum but its ciphertexts."""

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
    """A sum. Whoever opens it takes it out of here, so that its bytes are not in memory twice."""

    manifest: bytes
    sums: list[EncryptedSum]  # one, until it is taken
    receipt: Receipt | None = None  # why the site's own update is not in it


@dataclass(frozen=True)
class Reached:
    """What a site arrived at, with what its policy lets out and its vote, if it casts one."""

    opened: Opened
    metrics: Told = field(default_factory=Told)
    vote: Vote | None = None


@dataclass(frozen=True)
class Suspect:
    """An update of which some site said that it is wrong, or nobody did yet."""

    manifest: bytes
    plan: bytes
    update: SignedUpdate
    accusation: Accusation | None = None


@dataclass(frozen=True)
class Undo:
    """The votes by which a round is undone."""

    manifest: bytes
    round: int
    before: str  # digest of the model before it
    after: str
    votes: Mapping[str, Vote]


def _read_query(content: RecordDict) -> Query:
    return Query(contents.read_manifest(content), read_head(content), contents.read_sent(content))


def _read_ready(content: RecordDict) -> Ready:
    return Ready(contents.read_readiness(content), find_head(content))


def _read_led(content: RecordDict) -> Keys:
    return Keys(*ceremony.read_keys(content), ceremony.read_letters(content), ceremony.read_own_pairs(content))


def _read_keys(content: RecordDict) -> Keys:
    return Keys(*ceremony.read_keys(content), {}, ceremony.read_own_pairs(content))


def _pack_keys(keys: Keys) -> RecordDict:
    return ceremony.pack_keys(keys.epoch, keys.fingerprint, keys.letters, keys.pairs)


def _read_shared(content: RecordDict) -> Shared:
    names = ceremony.read_shared(content)
    return Shared(ceremony.read_own_pairs(content), names)


def _read_order(content: RecordDict) -> Order:
    head = read_head(content)
    return Order(contents.read_manifest(content), *contents.read_train(content), head)


def _read_trained(content: RecordDict) -> Trained:
    return Trained(*contents.read_update(content), find_head(content))


def _pack_shown(shown: Shown) -> RecordDict:
    return masking.pack_contributors(shown.manifest, shown.plan, shown.contributions, shown.signatures, shown.summed)


def _read_set(content: RecordDict) -> Shown:
    return Shown(contents.read_manifest(content), *masking.read_contributors(content))


def _read_shown(content: RecordDict) -> Shown:
    shown = contents.read_manifest(content), *masking.read_contributors(content)
    return Shown(*shown, masking.read_signatures(content), masking.read_summed(content))


def _read_to_prove(content: RecordDict) -> ToProve:
    manifest, total = contents.read_manifest(content), contents.read_sum(content)
    return ToProve(manifest, total, masking.read_signatures(content), masking.read_summed(content))


def _pack_delivery(delivery: Delivery) -> RecordDict:
    content = contents.pack_sum(delivery.manifest, *delivery.sums)
    return put_receipt(content, delivery.receipt) if delivery.receipt else content


def _read_delivery(content: RecordDict) -> Delivery:
    manifest, receipt = contents.read_manifest(content), find_receipt(content)
    return Delivery(manifest, [contents.take_sum(content)], receipt)


def _pack_outcome(outcome: Reached | Refusal) -> RecordDict:
    if isinstance(outcome, Reached):
        return votes.put_vote(contents.pack_opened(outcome.opened, outcome.metrics.numbers), outcome.vote)
    return masking.pack_refusal(outcome)


def _read_outcome(content: RecordDict) -> Reached | Refusal:
    if refusal := masking.find_refusal(content):
        return refusal
    return Reached(*contents.read_opened(content), votes.find_vote(content))


QUERY = MessageKind[Query, Ready](
    "query",
    lambda asked: put_head(contents.pack_query(asked.manifest, asked.sent), asked.head), _read_query,
    lambda ready: put_head(contents.pack_readiness(ready.readiness), ready.head), _read_ready,
)  # fmt: skip
LEAD = MessageKind[int, Keys]("query.lead", ceremony.pack_lead, ceremony.read_lead, _pack_keys, _read_led)
ACCEPT = MessageKind[Letter, Keys](
    "query.accept",
    lambda letter: ceremony.pack_letter(letter.leader, letter.sealed),
    lambda content: Letter(*ceremony.read_letter_from(content)),
    _pack_keys, _read_keys,
)  # fmt: skip
PAIRS = MessageKind[Pairs, Shared](
    "query.pairs",
    lambda pairs: ceremony.pack_pairs(pairs.fingerprint, pairs.letters),
    lambda content: Pairs(*ceremony.read_pairs(content)),
    lambda shared: ceremony.pack_shared(shared.letters, shared.names), _read_shared,
)  # fmt: skip
TRAIN = MessageKind[Order, Trained](
    "train",
    lambda order: put_head(contents.pack_train(order.manifest, order.plan, order.sums), order.head), _read_order,
    lambda made: put_head(contents.pack_update(made.update, made.report.numbers), made.head), _read_trained,
)  # fmt: skip
AGREE = MessageKind[Shown, Agreed](
    "query.agree", _pack_shown, _read_set,
    lambda agreed: masking.pack_agreed(agreed.signature, agreed.sealed),
    lambda content: Agreed(*masking.read_agreed(content)),
)  # fmt: skip
REVEAL = MessageKind[Shown, bytes](
    "query.reveal", _pack_shown, _read_shown, masking.pack_revealed, masking.read_revealed
)
PROVE = MessageKind[ToProve, bytes](
    "query.prove",
    lambda asked: masking.pack_to_prove(asked.manifest, asked.total, asked.signatures, asked.summed), _read_to_prove,
    masking.pack_proof, masking.read_proof,
)  # fmt: skip
EVALUATE = MessageKind[Delivery, Reached | masking.Refusal](
    "evaluate", _pack_delivery, _read_delivery, _pack_outcome, _read_outcome
)
JUDGE = MessageKind[Suspect, masking.Verdict](
    "query.judge",
    lambda body: masking.pack_body(body.manifest, body.plan, body.update, body.accusation),
    lambda content: Suspect(contents.read_manifest(content), *masking.read_body(content)),
    masking.pack_verdict, masking.read_verdict,
)  # fmt: skip
UNDO = MessageKind[Undo, str](
    "query.undo",
    lambda asked: votes.pack_votes(asked.manifest, asked.round, asked.before, asked.after, asked.votes),
    lambda content: Undo(contents.read_manifest(content), *votes.read_votes(content)),
    votes.pack_undone, votes.read_undone,
)  # fmt: skip

KINDS: dict[str, MessageKind[Any, Any]] = {
    kind.name: kind
    for kind in (QUERY, LEAD, ACCEPT, PAIRS, TRAIN, AGREE, REVEAL, PROVE, EVALUATE, JUDGE, UNDO)
}  # fmt: skip
"""All of them, by name."""
