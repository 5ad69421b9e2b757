"""Every message on the wire, and chunks of one, for the golden files: bodies, and what is in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Error, RecordDict

from privacy.codec.envelope import Contribution, SignedUpdate
from privacy.crypto.signing import sign
from privacy.crypto.summation import EncryptedSum
from privacy.crypto.verdict import sign_verdict
from privacy.ledger.ledger_head import SignedHead
from privacy.run.votes import Question, Vote, cast
from tests.privacy.consortium import make_plan, member, signing_key
from tests.privacy.readers import ANSWERED
from transport import cloister_pb2 as pb
from transport import mask_messages, run_messages
from transport import messages as wire
from transport.flower import instruction, reply, stamp
from transport.framing import to_frames
from transport.parcel import encode
from transport.reports import ReportedNumbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Message

NODE = member("south").node_id
HEAD_LINE = "5a" * 32
_DIGEST, _OTHER = "0f" * 32, "1e" * 32
_PARTS = tuple(Contribution(f"header of {n}".encode(), bytes([n]) * 64, b"seeds" * n, b"reveal", b"pairs" * 2)
               for n in (1, 2))  # fmt: skip
_SUM = EncryptedSum(b"a plan", _PARTS, (b"c0 of 32", b"c0 of the rest"), b"codes!!!", ())
_PROVED = EncryptedSum(b"a plan", _PARTS, _SUM.c0, b"codes!!!", (), (b"a proof", b"another"))
_UPDATE = SignedUpdate(b"a header", b"\3" * 64, (b"32 ciphertexts", b"the rest"), b"\4" * 96)
_LARGE = EncryptedSum(b"a plan", _PARTS[:1], (b"c0",), b"codes!!!", (b"c1",))


def signed_head(site: str = "south", lineage: str = "patients") -> SignedHead:
    """Return the head of a site's ledger, as it signs it."""
    return SignedHead(HEAD_LINE, sign(signing_key(site), "ledger", f"{site} {lineage} {HEAD_LINE}".encode()))


def readiness(run: str) -> run_messages.Readiness:
    """Return what south says of itself."""
    ready = run_messages.Readiness("south", _DIGEST, 20, _OTHER, 0.125, 2, "2d" * 32, 5, ["north", "west"], 1.8e9, b"")
    signature = sign(signing_key("south"), "readiness", ready.signed_part(run, NODE))
    return run_messages.Readiness(**{**vars(ready), "signature": signature})


def question(run: str) -> Question:
    """Return what the sites voted on."""
    return Question(run, 4, _DIGEST, _OTHER)


def votes(run: str) -> dict[str, Vote]:
    """Return their votes."""
    rejects = {"north": True, "south": False, "west": True}
    return {site: cast(question(run), signing_key(site), reject=reject) for site, reject in rejects.items()}


def instructions(run: str) -> dict[str, RecordDict]:
    """Return what the server sends, by kind."""
    manifest, plan, agreed = b"a manifest", b"a plan", {"north": b"\1" * 64, "west": b"\2" * 64}
    bare = replace(_PROVED, c0=(), codes=b"", c1=())
    of = question(run)
    content = {
        "query": wire.QUERY.pack(wire.Query(manifest, signed_head())),
        "query.lead": wire.LEAD.pack(3),
        "query.accept": wire.ACCEPT.pack(wire.Letter("north", b"a letter")),
        "query.pairs": wire.PAIRS.pack(wire.Pairs(_DIGEST, {"east": b"a pair letter", "north": b"another"})),
        "train": wire.TRAIN.pack(wire.Order(manifest, plan, [_SUM, _LARGE], signed_head())),
        "query.agree": wire.AGREE.pack(wire.ContributorSet(manifest, plan, _PARTS)),
        "query.reveal": wire.REVEAL.pack(wire.ContributorSet(manifest, plan, _PARTS, agreed, _DIGEST)),
        "query.prove": wire.PROVE.pack(wire.ProofRequest(manifest, bare, agreed, _PROVED.digest)),
        "query.judge": wire.JUDGE.pack(
            wire.Suspect(manifest, plan, _UPDATE, mask_messages.Accusation("north", b"\x09" * 64))
        ),
        "query.undo": wire.UNDO.pack(wire.Undo(manifest, of.round, of.before, of.after, votes(run))),
        "evaluate": wire.EVALUATE.pack(wire.Delivery(manifest, [_PROVED])),
    }  # fmt: skip
    assert content.keys() == wire.KINDS.keys()
    return content


def replies(run: str) -> dict[str, RecordDict]:
    """Return what a site answers."""
    pairs = {"west": b"a pair letter"}
    answers: dict[str, Any] = {
        "readiness": wire.Ready(readiness(run), signed_head()),
        "leader": wire.Keys(3, _DIGEST, {"north": b"one", "south": b"two"}, pairs),
        "keys": wire.Keys(3, _DIGEST, {}, pairs),
        "shared": wire.Shared(pairs, ["east", "north", "west"]),
        "update": wire.Trained(_UPDATE, ReportedNumbers({"epsilon": 0.5}), signed_head()),
        "agreed": wire.Agreed(b"\5" * 64, b"\6" * 112),
        "revealed": b"\7" * 112,
        "proved": b"\x08" * 100,
        "verdict": mask_messages.Verdict(right=False, signature=b"\x0a" * 64),
        "refused": mask_messages.Refusal("seeds", ["east", "west"], b"\x0b" * 64),
        "opened": wire.RoundOutcome(
            run_messages.Opened(_OTHER, 2.0**-20, b"\x08" * 64),
            ReportedNumbers({"loss": 0.25, "accuracy": 0.88}),
            votes(run)["south"],
        ),
        "undone": _DIGEST,
    }
    return {name: ANSWERED[name].pack_reply(answer) for name, answer in answers.items()}


def ask(kind: str, content: RecordDict) -> Message:
    """Return a message from the server to south."""
    message = instruction(content, kind=kind, node=NODE, run_id=int(_DIGEST[:15], 16), group="2", ttl=600.0)
    stamp(message, "f" * 32)
    return message


def body_of(message: Message) -> bytes:
    """Return a message as it travels."""
    return b"".join(encode(message))


def answered(content: RecordDict | Error) -> bytes:
    """Return the body of a reply."""
    message = reply(content, ask("query", RecordDict({})))
    stamp(message, "e" * 32)
    return body_of(message)


def frames(body: bytes, size: int, reply_to: str = "") -> list[bytes]:
    """Return a message's chunks of this size."""
    opening = next(to_frames([body], reply_to)).opening
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    first = pb.Chunk(opening=opening, data=pieces[0])
    return [chunk.SerializeToString() for chunk in (first, *(pb.Chunk(data=piece) for piece in pieces[1:]))]


def messages(run: str) -> dict[str, object]:
    """Return all of it."""
    questions = {kind: entry(body_of(ask(kind, content)), content) for kind, content in instructions(run).items()}
    answers = {kind: entry(answered(content), content) for kind, content in replies(run).items()}
    lead = bytes.fromhex(questions["query.lead"]["body"])
    return {
        "node": NODE,
        "run": run,
        "lineage": "patients",
        "words": _words(),
        "messages": questions,
        "replies": answers,
        "failure": {"body": answered(Error(100, "south refuses")).hex(), "code": 100, "reason": "south refuses"},
        "pull": pb.PullRequest(protocol=1, wait_seconds=20.0).SerializeToString().hex(),
        "chunks": [frame.hex() for frame in frames(lead, 64, "f" * 32)],
        "chunks_as_text": " ".join(frame.hex() for frame in frames(lead, 64, "f" * 32)),
        "receipt": pb.Receipt(status=pb.Receipt.ACCEPTED).SerializeToString().hex(),
    }


def _words() -> dict[str, object]:
    """Return what south signs of a sum, whether it opened, and of another's update; and what each is about."""
    key, plan = signing_key("south"), make_plan("1" * 64, deadline=1_800_000_000.5)
    opened, refusal = run_messages.Opened(_OTHER, 2.0**-20), mask_messages.Refusal("seeds", ["east", "west"])
    return {
        "plan": plan.to_bytes().decode(),
        "opened": {
            "model": opened.model,
            "update_bound": opened.update_bound,
            "signature": sign(key, "opened", opened.signed_part(plan.digest)).hex(),
        },
        "refused": {
            "why": refusal.why,
            "liars": refusal.liars,
            "signature": sign(key, mask_messages.REFUSAL, refusal.signed_part(plan.digest)).hex(),
        },
        "verdict": {
            "header": "a header",
            "right": False,
            "signature": sign_verdict(key, plan, b"a header", right=False).hex(),
        },
    }


def entry(body: bytes, content: RecordDict) -> dict[str, Any]:
    """Return a body, and what is in it."""
    return {
        "body": body.hex(),
        "arrays": {name: _arrays(record) for name, record in content.array_records.items()},
        "configs": {name: _values(record) for name, record in content.config_records.items()},
        "metrics": {name: _values(record) for name, record in content.metric_records.items()},
    }


def _arrays(arrays: ArrayRecord) -> list[list[object]]:
    return [[name, array.dtype, list(array.shape), array.stype, array.data.hex()] for name, array in arrays.items()]


def _values(values: Mapping[str, Any]) -> dict[str, object]:
    return {name: {"blob": value.hex()} if isinstance(value, bytes) else value for name, value in values.items()}
