"""What Cloister's messages say: protocol types to Flower records and back.

    query         manifest                          → readiness
    train         manifest, plan, sums not opened   → signed update, report
    evaluate      manifest, sum                     → digest of the model, metrics

What the key ceremony says stands in `transport.ceremony`. Ciphertexts travel as `Array`s of opaque bytes, the only kind
of record that Flower's own engines send in chunks.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import asdict, dataclass
from itertools import starmap
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from privacy.clocks import LATEST
from privacy.envelope import Contribution, SignedUpdate
from privacy.errors import ProtocolError
from privacy.summation import EncryptedSum
from transport.fields import DIGEST, array_bytes, blob, field, lacks, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.app import Message

_MAX_SUMS = 10_000
_SUM = (
    "plan",
    "codes",
    "header",
    "signature",
    "seeds",
    "reveal",
    "c0",
    "c1",
)  # the arrays of a sum; all but the first two are numbered


@dataclass(frozen=True)
class Readiness:
    """A site's answer to a manifest: it takes part, and this is the model it has. The site signed `model`."""

    site: str
    model: str  # digest of the site's current model for this run
    size: int  # parameters
    layout: str
    epoch: int  # whose keys the site has for the current roster; 0: none
    keys: str  # their fingerprint
    latest: int  # the newest epoch that the site has seen, for any roster
    clock: float  # what the site's clock shows, in seconds since 1970
    signature: bytes

    def signed_part(self, run: str, node_id: int) -> bytes:
        """Return the bytes that the signature is over; the node id keeps another node from claiming the site."""
        return f"{run} {self.site} {node_id} {self.model} {self.epoch} {self.keys} {self.latest}".encode()


def content_of(reply: Message) -> RecordDict:
    """Return what a reply holds.

    Raises:
        ProtocolError: with the reason, if it is an error.
    """
    if reply.has_error():
        raise ProtocolError(reply.error.reason or "it failed without a reason")
    return reply.content


def pack_query(manifest: bytes) -> RecordDict:
    """Ask a site whether it takes part, and say what the server's clock shows."""
    return RecordDict({"run": ConfigRecord({"manifest": manifest, "sent": time.time()})})


def read_sent(content: RecordDict) -> float:
    """Return what the server's clock showed as it asked, in seconds since 1970."""
    return _time(content, "run", "sent")


def read_manifest(content: RecordDict) -> bytes:
    """Return the signed manifest that every instruction carries."""
    return field(content, "run", "manifest", bytes)


def pack_readiness(readiness: Readiness) -> RecordDict:
    """Answer that this site takes part."""
    return RecordDict({"readiness": ConfigRecord(asdict(readiness))})


def read_readiness(content: RecordDict) -> Readiness:
    """Read a site's answer."""
    fields: dict[str, type] = {
        "site": str, "model": str, "size": int, "layout": str, "epoch": int, "keys": str, "latest": int,
        "clock": float, "signature": bytes,
    }  # fmt: skip
    readiness = Readiness(**{name: field(content, "readiness", name, kind) for name, kind in fields.items()})
    if not re.fullmatch(DIGEST, readiness.model) or (readiness.epoch and not re.fullmatch(DIGEST, readiness.keys)):
        lacks("readiness.keys")
    _time(content, "readiness", "clock")
    return readiness


def pack_train(manifest: bytes, plan: bytes, sums: Sequence[EncryptedSum]) -> RecordDict:
    """Ask a site to train, and bring it the sums that it has not opened yet."""
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


def pack_update(update: SignedUpdate, report: dict[str, float]) -> RecordDict:
    """Send an update, and what the site's policy lets out beside it."""
    return RecordDict(
        {
            "update": ConfigRecord({"header": update.header, "signature": update.signature}),
            "ciphertexts": _blobs(update.chunks),
            "report": MetricRecord(dict(report)),
        }
    )


def read_update(content: RecordDict) -> tuple[SignedUpdate, dict[str, float]]:
    """Read a signed update and its report."""
    header, signature = (field(content, "update", name, bytes) for name in ("header", "signature"))
    return SignedUpdate(header, signature, _chunks(content)), numbers(content, "report")


def pack_sum(manifest: bytes, total: EncryptedSum) -> RecordDict:
    """Deliver a round's sum."""
    content = RecordDict({"run": ConfigRecord({"manifest": manifest})})
    _put_sum(content, "sum", total)
    return content


def read_sum(content: RecordDict) -> EncryptedSum:
    """Read a delivered sum."""
    return _get_sum(content, "sum")


def take_sum(content: RecordDict) -> EncryptedSum:
    """Take a delivered sum out of a message, which holds its bytes no longer."""
    total = read_sum(content)
    del content["sum"]
    return total


def pack_opened(model: str, metrics: dict[str, float]) -> RecordDict:
    """Report which model a site arrived at, and the metrics that its policy lets out."""
    return RecordDict({"opened": ConfigRecord({"model": model}), "metrics": MetricRecord(dict(metrics))})


def read_opened(content: RecordDict) -> tuple[str, dict[str, float]]:
    """Read the digest and metrics."""
    metrics = numbers(content, "metrics")
    if not all(math.isfinite(value) for value in metrics.values()) or metrics.get("records", 1.0) <= 0:
        lacks("metrics that can be averaged")
    return field(content, "opened", "model", str), metrics


def sum_to_arrays(total: EncryptedSum) -> ArrayRecord:
    """Put a sum into the arrays that a Flower strategy passes on as "the model"."""
    arrays = {"plan": total.plan, "codes": total.codes}
    for index, part in enumerate(total.contributions):
        arrays |= {
            f"header-{index}": part.header,
            f"signature-{index}": part.signature,
            f"seeds-{index}": part.seeds,
            f"reveal-{index}": part.reveal,
        }
    for name, chunks in (("c0", total.c0), ("c1", total.c1)):
        arrays |= {f"{name}-{index}": chunk for index, chunk in enumerate(chunks)}
    return ArrayRecord({name: blob(data) for name, data in arrays.items()})


def sum_from_arrays(arrays: ArrayRecord) -> EncryptedSum:
    """Undo `sum_to_arrays`.

    Raises:
        MalformedError: if they hold no sum.
    """
    parts: dict[str, list[bytes]] = {}
    for name, array in arrays.items():
        kind, _, number = name.partition("-")
        expected = "" if kind in {"plan", "codes"} else str(len(parts.get(kind, ())))
        if kind not in _SUM or number != expected:
            lacks("sum")
        parts.setdefault(kind, []).append(array.data)
    plan, codes, headers, signatures, seeds, reveals, c0, c1 = (parts.get(kind, []) for kind in _SUM)
    if len(plan) != 1 or len(codes) != 1 or not len(headers) == len(signatures) == len(seeds) == len(reveals):
        lacks("sum")
    contributions = tuple(starmap(Contribution, zip(headers, signatures, seeds, reveals, strict=True)))
    return EncryptedSum(plan[0], contributions, tuple(c0), codes[0], tuple(c1))


def _time(content: RecordDict, record: str, name: str) -> float:
    found = field(content, record, name, float)
    if not 0 <= found <= LATEST:
        lacks(f"{record}.{name}")
    return found


def _put_sum(content: RecordDict, name: str, total: EncryptedSum) -> None:
    content[name] = sum_to_arrays(total)


def _get_sum(content: RecordDict, name: str) -> EncryptedSum:
    arrays = content.get(name)
    if not isinstance(arrays, ArrayRecord):
        lacks(name)
    return sum_from_arrays(arrays)


def _blobs(chunks: Sequence[bytes]) -> ArrayRecord:
    return ArrayRecord({str(index): blob(chunk) for index, chunk in enumerate(chunks)})


def _chunks(content: RecordDict) -> tuple[bytes, ...]:
    arrays = content.get("ciphertexts")
    if not isinstance(arrays, ArrayRecord) or list(arrays) != [str(index) for index in range(len(arrays))]:
        lacks("ciphertexts")
    return tuple(array_bytes(content, "ciphertexts", name) for name in arrays)
