"""Convert the messages about runs to Flower records and back. `transport.messages` lists all messages.

Ciphertexts travel as `Array`s of opaque bytes, the only kind of record that Flower's own engines send in chunks.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from privacy.codec.envelope import Contribution, SignedUpdate
from privacy.crypto.summation import EncryptedSum
from privacy.errors import ProtocolError
from privacy.run.clocks import LATEST
from privacy.untrusted_text import quoted
from transport.fields import DIGEST, SITE, array_bytes, blobs, check_names, field, lacks
from transport.flower import GONE, LEFT
from transport.ledger_head import has_unreadable_head
from transport.reports import read_metrics, read_report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flwr.app import Error, Message

    from transport.reports import ReportedNumbers

_MAX_SUMS = 10_000
_SUM = ("plan", "codes", "contributions", "c0", "c1", "proof")  # the arrays of a sum; the last three are numbered
OPENED = "opened"  # the signature's kind, and the record's name
_LENGTHS = struct.Struct(">5I")  # of a contribution's header, signature, seeds, reveal and pairs


@dataclass(frozen=True)
class Readiness:
    """A site's answer that it takes part in a run, with its model and keys. `signed_part` says what it signs."""

    site: str
    model: str  # digest of the site's current model for this run
    size: int  # parameters
    layout: str
    update_bound: float  # the range of its next update
    epoch: int  # of the site's keys for the current roster; 0: no keys
    keys: str  # their fingerprint
    latest: int  # the newest epoch that the site has seen, for any roster
    pairs: list[str]  # the sites with which it shares a mask secret under these keys
    clock: float  # the time on the site's clock, in seconds since 1970
    signature: bytes

    def signed_part(self, run: str, node_id: int) -> bytes:
        """Return the bytes to sign; the node id keeps another node from claiming the site."""
        keys = f"{self.epoch} {self.keys} {self.latest} {','.join(self.pairs)}"
        return f"{run} {self.site} {node_id} {self.model} {self.update_bound!r} {keys}".encode()


@dataclass(frozen=True)
class Opened:
    """The signed outcome of opening a sum at a site."""

    model: str  # digest of its new model
    update_bound: float  # the range of its next update
    signature: bytes = b""

    def signed_part(self, plan: str) -> bytes:
        """Return the bytes to sign, for the plan with this digest."""
        return f"{plan} {self.model} {self.update_bound!r}".encode()


def content_of(reply: Message) -> RecordDict:
    """Return the content of a reply.

    Raises:
        ProtocolError: if the reply is an error; quotes the reason.
    """
    if reply.has_error():
        raise ProtocolError(_reason(reply.error))
    return reply.content


def _reason(error: Error) -> str:
    if error.code == LEFT:
        return GONE  # our own words, whatever a site that sends this code says
    return quoted(error.reason) if error.reason else "it failed without giving a reason"


def pack_query(manifest: bytes, sent: float) -> RecordDict:
    """Ask a site whether it takes part, and send the time on the server's clock."""
    return RecordDict({"run": ConfigRecord({"manifest": manifest, "sent": sent})})


def read_sent(content: RecordDict) -> float:
    """Return the time on the server's clock when it asked, in seconds since 1970."""
    return _time(content, "run", "sent")


def read_manifest(content: RecordDict) -> bytes:
    """Return the signed manifest that every instruction carries."""
    return field(content, "run", "manifest", bytes)


def pack_readiness(readiness: Readiness) -> RecordDict:
    """Answer that this site takes part."""
    return RecordDict({"readiness": ConfigRecord(asdict(readiness))})


def read_readiness(content: RecordDict) -> Readiness:
    """Read a site's readiness."""
    fields: dict[str, type] = {
        "site": str, "model": str, "size": int, "layout": str, "update_bound": float, "epoch": int,
        "keys": str, "latest": int, "pairs": list, "clock": float, "signature": bytes,
    }  # fmt: skip
    readiness = Readiness(**{name: field(content, "readiness", name, kind) for name, kind in fields.items()})
    check_names(readiness.pairs, "readiness.pairs")
    if not re.fullmatch(SITE, readiness.site):
        lacks("readiness.site")
    if not re.fullmatch(DIGEST, readiness.model) or not re.fullmatch(DIGEST, readiness.layout) or readiness.size < 1:
        lacks("readiness.model")
    keys = re.fullmatch(DIGEST, readiness.keys) if readiness.epoch else not readiness.keys
    if not keys or readiness.epoch < 0 or readiness.latest < 0:
        lacks("readiness.keys")
    _check_bound(readiness.update_bound, "readiness.update_bound")
    _time(content, "readiness", "clock")
    return readiness


def pack_train(manifest: bytes, plan: bytes, sums: Sequence[EncryptedSum]) -> RecordDict:
    """Ask a site to train, and deliver the sums that it has not opened yet."""
    content = RecordDict({"run": ConfigRecord({"manifest": manifest, "plan": plan, "sums": len(sums)})})
    for index, total in enumerate(sums):
        _put_sum(content, f"sum-{index}", total)
    return content


def read_train(content: RecordDict) -> tuple[bytes, list[EncryptedSum]]:
    """Return the plan and the sums to open before training."""
    count = field(content, "run", "sums", int)
    if not 0 <= count <= _MAX_SUMS:
        lacks("run.sums")
    return field(content, "run", "plan", bytes), [_get_sum(content, f"sum-{index}") for index in range(count)]


def pack_update(update: SignedUpdate, report: Mapping[str, float]) -> RecordDict:
    """Send an update, and the numbers that the site's policy lets it report."""
    return put_signed(RecordDict({"report": MetricRecord(dict(report))}), update)


def read_update(content: RecordDict) -> tuple[SignedUpdate, ReportedNumbers]:
    """Read a signed update, and the valid part of the report beside it."""
    signed, report = read_signed(content), read_report(content)
    if has_unreadable_head(content):
        report = replace(report, dropped="its ledger head is malformed, and was left out")
    return signed, report


def put_signed(content: RecordDict, update: SignedUpdate) -> RecordDict:
    """Add a signed update to a message."""
    content["update"] = ConfigRecord({"header": update.header, "signature": update.signature})
    content["ciphertexts"] = blobs({str(index): chunk for index, chunk in enumerate(update.chunks)})
    content["masks"] = blobs({"commitments": update.commitments})
    return content


def read_signed(content: RecordDict) -> SignedUpdate:
    """Read a signed update alone."""
    header, signature = (field(content, "update", name, bytes) for name in ("header", "signature"))
    commitments = array_bytes(content, "masks", "commitments")
    return SignedUpdate(header, signature, _chunks(content), commitments)


def pack_sum(manifest: bytes, total: EncryptedSum) -> RecordDict:
    """Deliver a round's sum."""
    content = RecordDict({"run": ConfigRecord({"manifest": manifest})})
    _put_sum(content, "sum", total)
    return content


def read_sum(content: RecordDict) -> EncryptedSum:
    """Read a delivered sum."""
    return _get_sum(content, "sum")


def take_sum(content: RecordDict) -> EncryptedSum:
    """Move a delivered sum out of a message, to keep its bytes in memory only once."""
    total = read_sum(content)
    del content["sum"]
    return total


def pack_opened(opened: Opened, metrics: Mapping[str, float]) -> RecordDict:
    """Report the outcome of opening a sum, and the mean metrics that the site's policy lets it report."""
    return RecordDict({OPENED: ConfigRecord(asdict(opened)), "metrics": MetricRecord(dict(metrics))})


def read_opened(content: RecordDict) -> tuple[Opened, ReportedNumbers]:
    """Read the outcome of opening a sum, and the valid metrics beside it."""
    fields: dict[str, type] = {"model": str, "update_bound": float, "signature": bytes}
    opened = Opened(**{name: field(content, OPENED, name, kind) for name, kind in fields.items()})
    if not re.fullmatch(DIGEST, opened.model):
        lacks("opened.model")
    _check_bound(opened.update_bound, "opened.update_bound")
    return opened, read_metrics(content)


def sum_to_arrays(total: EncryptedSum) -> ArrayRecord:
    """Put a sum into arrays, for a message or a file; the bytes of ciphertexts and codes are not copied."""
    arrays = {"plan": total.plan, "codes": total.codes, "contributions": _join(total.contributions)}
    for name, chunks in (("c0", total.c0), ("c1", total.c1), ("proof", total.proofs)):
        arrays |= {f"{name}-{index}": chunk for index, chunk in enumerate(chunks)}
    return blobs(arrays)


def sum_from_arrays(arrays: ArrayRecord) -> EncryptedSum:
    """Undo `sum_to_arrays`.

    Raises:
        MalformedError: if the arrays hold no sum.
    """
    parts: dict[str, list[bytes]] = {}
    for name, array in arrays.items():
        kind, _, number = name.partition("-")
        expected = str(len(parts.get(kind, ()))) if kind in _SUM[3:] else ""
        if kind not in _SUM or number != expected:
            lacks("sum")
        parts.setdefault(kind, []).append(array.data)
    plan, codes, contributions, c0, c1, proofs = (parts.get(kind, []) for kind in _SUM)
    if not len(plan) == len(codes) == len(contributions) == 1:
        lacks("sum")
    return EncryptedSum(plan[0], tuple(_split(contributions[0])), tuple(c0), codes[0], tuple(c1), tuple(proofs))


def _join(contributions: Sequence[Contribution]) -> bytes:
    """Put all contributions into one array: with a thousand sites, separate arrays would take most of a round."""
    return b"".join(
        _LENGTHS.pack(*map(len, parts)) + b"".join(parts)
        for contribution in contributions
        for parts in [
            (contribution.header, contribution.signature, contribution.seeds, contribution.reveal, contribution.pairs)
        ]
    )


def _split(data: bytes) -> Iterator[Contribution]:
    place = 0
    while place < len(data):
        if len(data) - place < _LENGTHS.size:
            lacks("sum.contributions")
        lengths, place = _LENGTHS.unpack_from(data, place), place + _LENGTHS.size
        ends = list(accumulate(lengths, initial=place))
        if ends[-1] > len(data):
            lacks("sum.contributions")
        yield Contribution(*(data[start:end] for start, end in pairwise(ends)))
        place = ends[-1]


def _time(content: RecordDict, record: str, name: str) -> float:
    seconds = field(content, record, name, float)
    if not 0 <= seconds <= LATEST:
        lacks(f"{record}.{name}")
    return seconds


def _check_bound(bound: float, field_name: str) -> None:
    if not 0 < bound < math.inf:
        lacks(field_name)


def _put_sum(content: RecordDict, name: str, total: EncryptedSum) -> None:
    content[name] = sum_to_arrays(total)


def _get_sum(content: RecordDict, name: str) -> EncryptedSum:
    arrays = content.get(name)
    if not isinstance(arrays, ArrayRecord):
        lacks(name)
    return sum_from_arrays(arrays)


def _chunks(content: RecordDict) -> tuple[bytes, ...]:
    arrays = content.get("ciphertexts")
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [str(index) for index in range(len(arrays))]:
        lacks("ciphertexts")
    return tuple(array_bytes(content, "ciphertexts", name) for name in arrays)
