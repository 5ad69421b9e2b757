"""Every reader of what comes from outside, as a function of parts: see `vectors.py`. Each returns, or raises its error.

Where several functions read one after the other in the product, they do here, in the same order.
"""

from __future__ import annotations

import json
import tempfile
import time
from base64 import b64decode
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from flwr.app import ArrayRecord
from google.protobuf.message import DecodeError

from client.state.commitments import Commitments
from client.state.keyring import Keyring
from privacy.codec.envelope import SignedUpdate, verify_update
from privacy.codec.header import verify_header
from privacy.codec.packing import unpack
from privacy.crypto import agreement
from privacy.crypto.agreement import absent_from, check_agreed, check_set
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.key_epoch import EpochKeys, SealingKey, read_letter
from privacy.crypto.mac import MacKey
from privacy.crypto.masking import open_pairs, open_seed, unmask_sum, verify_pairs, verify_seed
from privacy.crypto.norm_proof import Proof, Statement, all_hold
from privacy.crypto.norm_signature import verify_proof
from privacy.crypto.pairs import read_pair
from privacy.crypto.projections import DEFAULT
from privacy.crypto.signing import verify
from privacy.crypto.summation import RunningSum, check_contributions, check_sum
from privacy.crypto.tag import TagKey
from privacy.errors import AuthenticityError, CloisterError, ConfigError, MalformedError, RefusedError
from privacy.ledger.ledger import Ledger
from privacy.noise.noise_shares import share_of
from privacy.run.clocks import check_clock, tolerance
from privacy.run.manifest import open_manifest, open_run
from privacy.run.plan import check_plan, check_under_way, read_plan
from privacy.run.roster import open_roster
from privacy.run.votes import Question, check_rejected
from tests.privacy.consortium import SECRET, sealing_key, signing_key
from tests.privacy.vectors import stored
from transport import cloister_pb2 as pb
from transport import messages as wire
from transport import run_messages
from transport.fields import blob
from transport.flower import instruction, stamp
from transport.framing import Assembly
from transport.parcel import decode_instruction, decode_reply
from transport.reports import ReportedNumbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from flwr.app import RecordDict

    from privacy.crypto.signing import PublicKey
    from privacy.run.manifest import Manifest
    from privacy.run.roster import Roster

    Parts = Mapping[str, bytes]


class LeftOutError(CloisterError):
    """Nothing was refused, but something that a reply tells besides was left out."""


LIMIT = 1 << 16  # bytes of a message in chunks
ANSWERED: dict[str, wire.MessageKind[Any, Any]] = {
    "readiness": wire.QUERY,
    "leader": wire.LEAD,
    "keys": wire.ACCEPT,
    "shared": wire.PAIRS,
    "update": wire.TRAIN,
    "agreed": wire.AGREE,
    "revealed": wire.REVEAL,
    "proved": wire.PROVE,
    "verdict": wire.JUDGE,
    "refused": wire.EVALUATE,
    "opened": wire.EVALUATE,
    "undone": wire.UNDO,
}
"""Replies, by what the golden files call them, and the kinds of messages that they answer."""


@contextmanager
def at(now: bytes) -> Iterator[None]:
    """Stop the clock."""
    with patch.object(time, "time", lambda: float(now)):
        yield


def manifest(parts: Parts) -> None:
    opened = open_run(parts["data"], _roster(parts)).manifest
    opened.check_valid(float(parts["now"]))


def roster(parts: Parts) -> None:
    with at(parts["now"]):
        open_roster(parts["data"], _authority())


def plan(parts: Parts) -> None:
    read_plan(parts["plan"])


def check_policy_of(parts: Parts) -> None:
    opened, run = _manifest(parts)
    with at(parts["now"]):
        check_plan(read_plan(parts["plan"]), opened, run, parts["site"].decode())


def header(parts: Parts) -> None:
    verify_header(parts["header"], parts["signature"], parts["site"].decode(), read_plan(parts["plan"]),
                  _manifest(parts)[0], _roster(parts))  # fmt: skip


def update(parts: Parts) -> None:
    """An update with its body, added to a sum; `cuts` says where the body is cut into chunks, or that there is none."""
    cuts, body, asked_for = parts["cuts"].decode(), parts["chunk"], read_plan(parts["plan"])
    ends = [*map(int, cuts.split()), len(body)] if cuts != "none" else []
    chunks = tuple(body[start:end] for start, end in zip([0, *ends], ends, strict=False))
    signed = SignedUpdate(parts["header"], parts["signature"], chunks, parts["commitments"])
    verified = verify_update(signed, parts["site"].decode(), asked_for, _manifest(parts)[0], _roster(parts))
    RunningSum(asked_for).add(verified)


def addition(parts: Parts) -> None:
    """Updates with one body, added up and closed."""
    asked_for, running = read_plan(parts["plan"]), RunningSum(read_plan(parts["sum's plan"]))
    for part in run_messages._split(parts["signed"]):
        site, signed = json.loads(part.header)["site"], SignedUpdate(part.header, part.signature, (parts["chunk"],))
        running.add(verify_update(signed, site, asked_for, _manifest(parts)[0], _roster(parts)))
    running.close()


def total(parts: Parts) -> None:
    """A sum as a site gets it, to the mean. The names of its arrays are a part too."""
    sum_, (opened, run), members = run_messages.sum_from_arrays(arrays_of(parts)), _manifest(parts), _roster(parts)
    asked_for, headers = check_sum(sum_, run, opened, members)
    nonces = {site: stated.nonce for site, stated in headers.items()}
    chunks = MacKey(SECRET).check(sum_.ciphertexts, asked_for, nonces)
    blocks = TagKey(SECRET).check(_decryption().decrypt(chunks), asked_for, nonces)
    first = next(iter(headers.values()))
    if first.mask:
        absent, own, pairs = absent_from(asked_for, headers), {}, {}
        for stated, part in zip(headers.values(), sum_.contributions, strict=True):
            key = members.member(stated.site).verification_key
            sealed = verify_seed(part.reveal, asked_for, stated.mask, key)
            opened_pairs = verify_pairs(part.pairs, asked_for, stated.pairs, absent, key)
            own[stated.site] = open_seed(sealed, SECRET, asked_for, stated.site, stated.mask)
            pairs[stated.site] = open_pairs(opened_pairs, absent, SECRET, asked_for, stated.site, stated.pairs)
        blocks = unmask_sum(blocks, own, pairs, asked_for)
    packing = replace(opened.packing, update_bound=first.update_bound)
    unpack(blocks, first.size, [update_header.weight for update_header in headers.values()], packing)


def contributors(parts: Parts) -> None:
    """A set that a site is asked to sign; and, if it is shown what all signed, to reveal its seed for."""
    opened, run = _manifest(parts)
    asked_for, contributions_, site = (
        read_plan(parts["plan"]),
        tuple(run_messages._split(parts["shown"])),
        parts["site"].decode(),
    )
    with at(parts["now"]):
        check_under_way(asked_for, opened.settings.cohort.round_deadline_seconds, site)
    verified = check_contributions(contributions_, asked_for, opened, _roster(parts))
    signed = {name: contribution.header for name, contribution in zip(verified, contributions_, strict=True)}
    check_set(asked_for, signed, (site, parts["own"]), int(parts["minimum"]))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{run[:16]}.commitments").write_bytes(parts["once"])
        if parts["agreed"]:
            signatures = {name: bytes.fromhex(digest) for name, digest in json.loads(parts["agreed"]).items()}
            check_agreed(asked_for, signed, signatures, _roster(parts))
            agreement.reveal(Commitments(Path(folder)), asked_for, signed, json.loads(parts["own"])["mask"])
        else:
            agreement.agree(Commitments(Path(folder)), asked_for, signed, signing_key(site))


def proof(parts: Parts) -> None:
    """A signed proof of how long an update is."""
    site = parts["site"].decode()
    statement = Statement(parts["context"], site, DEFAULT, int(parts["limit"]))
    proof_bytes = verify_proof(parts["signed"], parts["subject"], signing_key(site).public_key())
    if not all_hold([(statement, Proof.read(proof_bytes, statement))]):
        msg = "the proof does not hold"
        raise AuthenticityError(msg)


def keys(parts: Parts) -> None:
    EpochKeys.from_bytes(parts["data"]).decryption.check_form()


def sealing(parts: Parts) -> None:
    SealingKey(parts["data"])


def letter(parts: Parts) -> None:
    read_letter(parts["letter"], parts["leader"].decode(), _roster(parts), parts["site"].decode(), sealing_key("south"))


def pair(parts: Parts) -> None:
    read_pair(parts["letter"], _keys(), _roster(parts), parts["sender"].decode(), parts["site"].decode(),
              sealing_key(parts["site"].decode()))  # fmt: skip


def readiness(parts: Parts) -> None:
    reply_ = run_messages.read_readiness(reply_of(parts["body"]))
    signed = reply_.signed_part(parts["run"].decode(), int(parts["node"]))
    verify(_roster(parts).member(reply_.site).verification_key, "readiness", signed, reply_.signature)


def votes(parts: Parts) -> None:
    """The votes by which a model is to be undone."""
    content, cohort = decode_instruction(parts["body"]).content, _manifest(parts)[0].settings.cohort
    asked_for = wire.UNDO.read(content)
    about = Question(parts["run"].decode(), asked_for.round, asked_for.before, asked_for.after)
    check_rejected(about, asked_for.votes, cohort.sizes, cohort.minimum, _roster(parts))


def message(parts: Parts) -> None:
    """A message from the server. What is read of it depends on its kind."""
    question = decode_instruction(parts["body"])
    wire.KINDS[question.metadata.message_type].read(question.content)


def answer(parts: Parts) -> None:
    """A site's reply to the message of the id `f…f`."""
    reply = ANSWERED[parts["kind"].decode()].read_reply(reply_of(parts["body"]))
    report = reply.report if isinstance(reply, wire.Trained) else getattr(reply, "metrics", ReportedNumbers())
    if report.dropped:
        raise LeftOutError(report.dropped)


def chunks(parts: Parts) -> None:
    """A message in chunks, each as gRPC hands it over: in hex, with a space between."""
    assembly = Assembly(LIMIT)
    for chunk in parts["chunks"].decode().split():
        try:
            assembly.add(pb.Chunk.FromString(bytes.fromhex(chunk)))
        except DecodeError as error:
            raise MalformedError(str(error)) from error  # gRPC does that
    assembly.finish()


def clocks(parts: Parts) -> None:
    """What a site's clock showed between two times of the server's, in a run whose rounds take this many seconds."""
    there, sent, received, seconds = (float(parts[name]) for name in ("there", "sent", "received", "seconds"))
    check_clock("south", there, sent, received, tolerance(seconds))


def share(parts: Parts) -> None:
    """A run with shared noise, and a model with this many parameters and this norm."""
    try:
        share_of(_manifest(parts)[0], int(parts["parameters"]), float(parts["length"]))
    except ConfigError as error:  # as a site says it
        raise RefusedError(str(error)) from error


def ledger(parts: Parts) -> None:
    known = stored("ledger")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        path.write_bytes(parts["file"])
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(known["public_key"]))
        Ledger(path, known["site"], known["lineage"], key).mechanisms()


def epoch(parts: Parts) -> None:
    """The number of a key epoch whose keys a site gets while it has those of another."""
    with tempfile.TemporaryDirectory() as folder:
        keyring = Keyring(Path(folder))
        keyring.take(EpochKeys(int(parts["held"]), _decryption(), SECRET), 3)
        keyring.take(EpochKeys(int(parts["brought"]), _decryption(), bytes(32)), 3)


READERS: dict[str, Callable[[Parts], None]] = {
    "manifest": manifest,
    "roster": roster,
    "plan": plan,
    "asked": check_policy_of,
    "header": header,
    "update": update,
    "masked update": update,
    "addition": addition,
    "sum": total,
    "large sum": total,
    "set": contributors,
    "reveal": contributors,
    "proof": proof,
    "keys": keys,
    "sealing key": sealing,
    "letter": letter,
    "pair": pair,
    "share": share,
    "ledger": ledger,
    "clocks": clocks,
    "epoch": epoch,
    "readiness": readiness,
    "votes": votes,
    "chunks": chunks,
    **{f"message {kind}": message for kind in wire.KINDS},
    **{f"reply {kind}": answer for kind in ANSWERED},
}


def arrays_of(parts: Parts) -> ArrayRecord:
    """Return a sum's arrays, under the names that they have there."""
    names = parts["names"].decode().split()
    return ArrayRecord({name: blob(parts[part]) for name, _, part in (name.partition("=") for name in names)})


def reply_of(body: bytes) -> RecordDict:
    """Return what is in a reply."""
    to = instruction(wire.QUERY.pack(wire.Query(b"")), kind="query", node=12, run_id=7, group="1", ttl=60.0)
    stamp(to, "f" * 32)
    return run_messages.content_of(decode_reply(body, to))


def _manifest(parts: Parts) -> tuple[Manifest, str]:
    return open_manifest(parts["manifest"], _coordinator())


def _roster(parts: Parts) -> Roster:
    return open_roster(parts["roster"], _authority())


def _coordinator() -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(stored("documents")["coordinator"]))


@cache
def _authority() -> PublicKey:
    return cast("PublicKey", load_der_public_key(b64decode(stored("documents")["authority"])))


@cache
def _decryption() -> DecryptionKey:
    return DecryptionKey.from_bytes(b64decode(stored("ciphertext")["key"]))


def _keys() -> EpochKeys:
    return EpochKeys(2, _decryption(), SECRET)
