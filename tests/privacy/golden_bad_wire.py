"""Messages that must be refused, for the golden files: bodies, what is in them, and chunks. See `golden_bad.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from privacy.crypto.signing import sign
from privacy.run.votes import cast
from tests.privacy.bad_vectors import OTHER, A, Bad, M, P
from tests.privacy.consortium import signing_key
from tests.privacy.golden_wire import (
    NODE,
    answered,
    ask,
    body_of,
    frames,
    instructions,
    question,
    readiness,
    replies,
    votes,
)
from tests.privacy.readers import ANSWERED, LIMIT
from tests.privacy.vectors import good_parts, stored
from transport import cloister_pb2 as pb
from transport import messages as kinds
from transport.fields import blob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS: dict[str, dict[str, str]] = {
    "readiness": {"roster": "text documents/roster", "run": "text wire/run", "node": f"text ={NODE}",
                  "body": "hex wire/replies/readiness/body"},
    "votes": {"manifest": "text documents/manifest", "roster": "text documents/roster", "run": "text wire/run",
              "body": "hex wire/messages/query.undo/body"},
    "chunks": {"chunks": "text wire/chunks_as_text"},
    **{f"message {kind}": {"body": f"hex wire/messages/{kind}/body"} for kind in kinds.KINDS},
    **{f"reply {kind}": {"body": f"hex wire/replies/{kind}/body", "kind": f"text ={kind}"} for kind in ANSWERED},
}  # fmt: skip
_BYTES = Array("uint8", (1,), "numpy.ndarray", b"x")


def wire() -> Iterator[Bad]:
    """Yield all of them."""
    yield from _parcels()
    yield from _records()
    yield from _readiness()
    yield from _votes()
    yield from _chunks()


def _parcels() -> Iterator[Bad]:
    good = good_parts("message query.agree")["body"]
    for name, body in (
        ("too short for a length", good[:3]),
        ("cut in the parcel", good[:40]),
        ("a parcel that is none", good[:4] + b"\xff" * (len(good) - 4)),
        ("arrays that are cut", good[:-1]),
        ("something after the arrays", good + b"\0"),
        ("a reply", _framed(lambda parcel: setattr(parcel, "reply_to", "f" * 32))),
        ("a failure", _framed(lambda parcel: setattr(parcel.failure, "code", 100))),
        ("a kind that Flower does not know", _framed(lambda parcel: setattr(parcel, "kind", "dance"))),
        ("a value without content", _framed(lambda parcel: parcel.records.configs["run"].values["more"].SetInParent())),
    ):
        yield Bad("message query.agree", name, {"body": body}, M)
    # Two spaces are a field of a parcel: this one is read, but for its length.
    letter = good_parts("message query.accept")["body"]
    yield Bad("message query.accept", "too many arrays", {"body": _framed(_many, letter)}, M)
    lead, limit = good_parts("message query.lead")["body"][4:], 4 << 20
    size = limit + 2 + len(lead) % 2
    body = size.to_bytes(4) + lead.ljust(size)
    yield Bad("message query.lead", "a parcel of more than 4 MiB", {"body": body}, M)
    kind = "reply revealed"
    for name, edit, error in (
        ("to another message", lambda parcel: setattr(parcel, "reply_to", "a" * 32), M),
        ("neither records nor a failure", lambda parcel: parcel.ClearField("records"), M),
        ("a failure", lambda parcel: setattr(parcel.failure, "code", 100), P),
        ("a value without content", lambda parcel: parcel.records.configs["run"].values["more"].SetInParent(), M),
        ("a metric that is text", lambda parcel: setattr(parcel.records.metrics["m"].values["loss"], "text", "0"), M),
    ):
        yield Bad(kind, name, {"body": _framed(edit, good_parts(kind)["body"])}, error)
    yield Bad(kind, "cut in the parcel", {"body": good_parts(kind)["body"][:40]}, M)


def _framed(edit: Callable[[Any], object], body: bytes = b"") -> bytes:
    """Return a body with a changed parcel."""
    body = body or good_parts("message query.agree")["body"]
    end = 4 + int.from_bytes(body[:4])
    parcel = pb.Parcel.FromString(body[4:end])
    edit(parcel)
    head = parcel.SerializeToString(deterministic=True)
    return len(head).to_bytes(4) + head + body[end:]


def _many(parcel: Any) -> None:  # noqa: ANN401 - protobuf
    for _ in range(1 << 16):
        parcel.records.arrays["sealed"].entries.add()


def _records() -> Iterator[Bad]:
    run = stored("wire")["run"]
    good = {f"message {kind}": content for kind, content in instructions(run).items()}
    good |= {f"reply {kind}": content for kind, content in replies(run).items()}
    config, arrays, metrics = ConfigRecord, ArrayRecord, MetricRecord
    refused: dict[str, Any] = {"why": "seeds", "liars": ["east"], "signature": bytes(64)}
    opened: dict[str, Any] = {"model": OTHER, "update_bound": 0.5, "signature": bytes(64)}
    cases: list[tuple[str, str, str, object]] = [
        ("message query", "no run", "run", None),
        ("message query", "a manifest as text", "run", config({"manifest": "a manifest", "sent": 1.8e9})),
        ("message query", "sent before 1970", "run", config({"manifest": b"m", "sent": -1.0})),
        ("message query", "sent in the year 5138", "run", config({"manifest": b"m", "sent": 2e11})),
        ("message query", "sent at a whole second", "run", config({"manifest": b"m", "sent": 1_800_000_000})),
        ("message query", "arrays for a run", "run", arrays({"manifest": blob(b"a manifest")})),
        ("message query", "a short head", "ledger", config({"head": "5a", "signature": bytes(64)})),
        ("message query", "a short signature of a head", "ledger", config({"head": "5a" * 32, "signature": bytes(63)})),
        ("message query", "a head without a signature", "ledger", config({"head": "5a" * 32})),
        ("message query.lead", "an epoch as text", "lead", config({"epoch": "3"})),
        ("message query.lead", "an epoch that is true", "lead", config({"epoch": True})),
        ("message query.accept", "a leader in capitals", "letter", config({"leader": "North"})),
        ("message query.accept", "no letter", "sealed", arrays({"other": blob(b"a letter")})),
        ("message query.accept", "a letter of another type", "sealed", arrays({"letter": _BYTES})),
        ("message query.accept", "a letter among values", "sealed", config({"letter": b"a letter"})),
        ("message query.pairs", "no pairs", "pairs", None),
        ("message query.pairs", "pairs among values", "pairs", config({"east": b"a letter"})),
        ("message query.pairs", "a name in capitals", "pairs", arrays({"East": blob(b"a letter")})),
        ("message query.pairs", "a letter of over 4,096 bytes", "pairs", arrays({"east": blob(bytes(4097))})),
        ("message train", "fewer sums than none", "run", config({"manifest": b"m", "plan": b"p", "sums": -1})),
        ("message train", "too many sums", "run", config({"manifest": b"m", "plan": b"p", "sums": 10_001})),
        ("message train", "a sum that is not there", "run", config({"manifest": b"m", "plan": b"p", "sums": 3})),
        ("message train", "a sum among values", "sum-1", config({"plan": b"p"})),
        ("message query.agree", "no cohort", "cohort", None),
        ("message query.agree", "a header without a signature", "cohort", arrays({"header-0": blob(b"h")})),
        (
            "message query.agree",
            "a signature without its header",
            "cohort",
            arrays({"header-0": blob(b"h"), "signature-0": blob(b"s"), "signature-1": blob(b"s"), "x": blob(b"s")}),
        ),
        ("message query.reveal", "no signatures", "agreed", None),
        ("message query.reveal", "signatures among arrays", "agreed", arrays({"north": blob(bytes(64))})),
        ("message query.reveal", "a signature as text", "agreed", config({"north": "signature"})),
        (
            "message query.reveal",
            "a short digest of a sum",
            "run",
            config({"manifest": b"m", "plan": b"p", "sum": "5a"}),
        ),
        (
            "message query.reveal",
            "a digest in bytes",
            "run",
            config({"manifest": b"m", "plan": b"p", "sum": b"s" * 64}),
        ),
        ("message query.prove", "no signatures", "agreed", None),
        ("message query.prove", "no sum", "sum", None),
        ("message query.prove", "a short digest of a sum", "run", config({"manifest": b"m", "sum": "5a"})),
        ("message query.undo", "no votes", "votes", None),
        ("message query.undo", "votes among arrays", "votes", arrays({"north": blob(bytes(65))})),
        ("message query.undo", "a vote as text", "votes", config({"north": "reject"})),
        ("message query.undo", "a vote of 2", "votes", config({"north": b"\2" + bytes(64)})),
        ("message query.undo", "a short vote", "votes", config({"north": bytes(64)})),
        ("message query.undo", "a name in capitals", "votes", config({"North": bytes(65)})),
        ("message query.undo", "round 0", "undo", config({"round": 0, "before": OTHER, "after": OTHER})),
        ("message query.undo", "a model before by name", "undo", config({"round": 1, "before": "m", "after": OTHER})),
        ("message query.undo", "a model after by name", "undo", config({"round": 1, "before": OTHER, "after": "m"})),
        ("message query.undo", "no model after", "undo", config({"round": 1, "before": OTHER})),
        ("message query.judge", "no plan", "run", config({"manifest": b"m"})),
        ("message query.judge", "no accusation", "accusation", None),
        ("message query.judge", "an accusation among arrays", "accusation", arrays({"site": blob(b"north")})),
        ("message query.judge", "an accusation by North", "accusation", config({"site": "North", "signature": b"s"})),
        ("message query.judge", "an accusation that is not signed", "accusation", config({"site": "north"})),
        ("message query.judge", "no header", "update", config({"signature": b"s"})),
        ("message query.judge", "chunks numbered from 1", "ciphertexts", arrays({"1": blob(b"c")})),
        ("message query.judge", "no commitments", "masks", None),
        ("message evaluate", "no sum", "sum", None),
        ("reply readiness", "no readiness", "readiness", None),
        ("reply leader", "a short fingerprint", "keys", config({"epoch": 3, "fingerprint": "ab"})),
        ("reply leader", "a negative epoch", "keys", config({"epoch": -1, "fingerprint": OTHER})),
        ("reply leader", "no letter", "letters", arrays({})),
        ("reply leader", "letters among values", "letters", config({"north": b"one"})),
        ("reply keys", "a name in capitals", "pairs", arrays({"West": blob(b"a letter")})),
        ("reply shared", "a name twice", "shared", config({"names": ["east", "east"]})),
        ("reply shared", "a name in capitals", "shared", config({"names": ["East"]})),
        ("reply shared", "a name by number", "shared", config({"names": [5]})),
        ("reply shared", "one name", "shared", config({"names": "east"})),
        ("reply update", "a header as text", "update", config({"header": "h", "signature": b"s"})),
        ("reply update", "chunks numbered from 1", "ciphertexts", arrays({"1": blob(b"c")})),
        ("reply update", "chunks in another order", "ciphertexts", arrays({"1": blob(b"c"), "0": blob(b"c")})),
        ("reply update", "chunks among values", "ciphertexts", config({"0": b"c"})),
        ("reply update", "values for chunks", "ciphertexts", config({})),
        ("reply agreed", "no seeds", "pairs", None),
        ("reply revealed", "a short seed", "reveal", config({"sealed": bytes(111)})),
        ("reply proved", "no proof", "norm", None),
        ("reply proved", "a proof of over 65,536 bytes", "norm", arrays({"proof": blob(bytes(65_537))})),
        ("reply verdict", "neither right nor wrong", "verdict", config({"right": 1, "signature": b"s"})),
        ("reply verdict", "no signature", "verdict", config({"right": True})),
        ("reply refused", "another reason", "refused", config(refused | {"why": "weather"})),
        ("reply refused", "another reason, and no liars", "refused", config(refused | {"why": "weather", "liars": []})),
        ("reply refused", "false seeds of nobody", "refused", config(refused | {"liars": []})),
        ("reply refused", "a liar beside wrong codes", "refused", config(refused | {"why": "codes"})),
        ("reply refused", "a name twice", "refused", config(refused | {"liars": ["east", "east"]})),
        ("reply refused", "a liar in capitals", "refused", config(refused | {"liars": ["East"]})),
        ("reply refused", "no signature", "refused", config({"why": "seeds", "liars": ["east"]})),
        ("reply refused", "no liars", "refused", config({"why": "codes", "signature": b"s"})),
        ("reply refused", "a refusal among arrays", "refused", arrays({"why": blob(b"seeds")})),
        ("reply undone", "a model by name", "undone", config({"model": "resnet"})),
        ("reply undone", "no model", "undone", None),
        ("reply opened", "a model by number", "opened", config(opened | {"model": 5})),
        ("reply opened", "a model by name", "opened", config(opened | {"model": "resnet"})),
        ("reply opened", "a range of 0", "opened", config(opened | {"update_bound": 0.0})),
        ("reply opened", "a range without an end", "opened", config(opened | {"update_bound": float("inf")})),
        ("reply opened", "no signature", "opened", config({"model": OTHER, "update_bound": 0.5})),
    ]
    unwelcome: list[tuple[str, str, str, object]] = [
        ("reply update", "a report among values", "report", config({"epsilon": 0.5})),
        ("reply update", "a list for ε", "report", metrics({"epsilon": [0.5]})),
        ("reply update", "a negative ε", "report", metrics({"epsilon": -0.5})),
        ("reply update", "an ε above any budget", "report", metrics({"epsilon": 1e7})),
        ("reply update", "an ε that is no number", "report", metrics({"epsilon": float("nan")})),
        ("reply update", "something else than ε", "report", metrics({"delta": 0.5})),
        ("reply update", "a short head", "ledger", config({"head": "5a", "signature": bytes(64)})),
        ("reply opened", "a metric that is no number", "metrics", metrics({"loss": float("nan")})),
        ("reply opened", "a metric beyond float32", "metrics", metrics({"loss": 1e39})),
        ("reply opened", "a name of a metric in two lines", "metrics", metrics({"lo\nss": 0.5})),
        ("reply opened", "too many metrics", "metrics", metrics({f"m{number}": 0.5 for number in range(17)})),
    ]
    for error, kind, name, record, value in [(M, *case) for case in cases] + [
        ("LeftOutError", *case) for case in unwelcome
    ]:
        content = RecordDict(dict(good[kind].items()))
        content.pop(record, None)
        if value is not None:
            content[record] = value  # type: ignore[assignment]
        name_ = kind.partition(" ")[2]
        body = body_of(ask(name_, content)) if kind.startswith("message") else answered(content)
        yield Bad(kind, name, {"body": body}, error)


def _readiness() -> Iterator[Bad]:
    run, ready = stored("wire")["run"], vars(readiness(stored("wire")["run"]))
    for name, changes, error in (
        ("a model by name", {"model": "resnet"}, M),
        ("a layout by name", {"layout": "resnet"}, M),
        ("a size of 0", {"size": 0}, M),
        ("a range of 0", {"update_bound": 0.0}, M),
        ("a range that is no number", {"update_bound": float("nan")}, M),
        ("short keys", {"keys": "ab"}, M),
        ("keys of no epoch", {"epoch": 0}, M),
        ("a negative epoch", {"epoch": -1}, M),
        ("a negative newest epoch", {"latest": -1}, M),
        ("a site in capitals", {"site": "South"}, M),
        ("a clock before 1970", {"clock": -1.0}, M),
        ("a clock that shows no time", {"clock": float("nan")}, M),
        ("a size as text", {"size": "20"}, M),
        ("a name twice", {"pairs": ["north", "north"]}, M),
        ("a name in capitals", {"pairs": ["North"]}, M),
        ("another model than it signed", {"model": OTHER}, A),
        ("another range than it signed", {"update_bound": 0.25}, A),
        ("other keys than it signed", {"keys": OTHER}, A),
        ("more pairs than it signed", {"pairs": ["east", "north", "west"]}, A),
        ("a newer epoch than it signed", {"latest": 6}, A),
        ("another site", {"site": "north"}, A),
        ("a site that is no member", {"site": "mallory"}, P),
    ):
        content = RecordDict({"readiness": ConfigRecord(ready | changes)})
        yield Bad("readiness", name, {"body": answered(content)}, error)
    genuine = readiness(run)
    elsewhere = sign(signing_key("south"), "readiness", genuine.signed_part(run, NODE + 1))
    content = RecordDict({"readiness": ConfigRecord(ready | {"signature": elsewhere})})
    yield Bad("readiness", "signed for another node", {"body": answered(content)}, A)
    yield Bad("readiness", "signed for another run", {"run": OTHER.encode()}, A)


def _votes() -> Iterator[Bad]:
    run = stored("wire")["run"]
    genuine, good = question(run), votes(run)
    keep = {site: cast(genuine, signing_key(site), reject=False) for site in good}
    for name, about, votes_, error in (
        ("another round", replace(genuine, round=5), good, A),
        ("from another model", replace(genuine, before=OTHER), good, A),
        ("to another model", replace(genuine, after=OTHER), good, A),
        ("a vote turned over", genuine, good | {"south": replace(good["south"], reject=True)}, A),
        ("another's vote", genuine, good | {"south": good["north"]}, A),
        ("a site that is no member", genuine, good | {"mallory": good["north"]}, P),
        ("a vote left out, so that too few are left", genuine, {site: good[site] for site in ("north", "west")}, P),
        ("one of three rejects", genuine, keep | {"north": good["north"]}, P),
    ):
        body = body_of(
            ask(
                "query.undo", kinds.UNDO.pack(kinds.Undo(b"a manifest", about.round, about.before, about.after, votes_))
            )
        )
        yield Bad("votes", name, {"body": body}, error)
    yield Bad("votes", "of another run", {"run": OTHER.encode()}, A)


def _chunks() -> Iterator[Bad]:
    good = good_parts("chunks")["chunks"].decode().split()
    body = good_parts("message query.lead")["body"]

    def opened(**opening: int) -> bytes:
        first = pb.Chunk.FromString(bytes.fromhex(good[0]))
        for name, value in opening.items():
            setattr(first.opening, name, value)
        return _text([first.SerializeToString(), *map(bytes.fromhex, good[1:])])

    for name, chunks in (
        ("another protocol", opened(protocol=2)),
        ("over the limit", _text(frames(bytes(LIMIT + 1), LIMIT + 1))),
        ("over the limit, as it says", opened(total_bytes=LIMIT + 1)),
        ("more than was announced", opened(total_bytes=len(body) - 1)),
        ("less than was announced", opened(total_bytes=len(body) + 1)),
        ("a chunk left out", _text(map(bytes.fromhex, good[:-1]))),
        ("the first chunk left out", _text(frames(body, 64)[1:])),
    ):
        yield Bad("chunks", name, {"chunks": chunks}, M)


def _text(chunks: Any) -> bytes:  # noqa: ANN401 - any iterable of bytes
    return " ".join(chunk.hex() for chunk in chunks).encode()
