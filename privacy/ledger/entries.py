"""Read, verify and write a ledger's lines as a signed chain. An event that this version does not know is an error.

A line is its head (a digest of all lines up to it), the site's signature of this head, and an event as JSON. The first
event names the ledger's site and lineage. Every other event is one of these:

- a charge, of noisy steps or of a vote;
- a departure: the digest of the result that is about to leave under a charge, or an empty string if it failed;
- an adoption: the site has a new key;
- a loss: heads of entries that are lost, whose most possible cost is charged before this line.

The digest covers the head and signature of the line before. So nobody without the site's signing key can change, remove
or move a line, including the last one, and the last signature covers all lines. The chain does not show whether lines
are missing at the end: see `privacy.ledger.ledger_head`. A torn last line comes from an interrupted append, which was
never acknowledged; it is dropped.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from privacy.accounting.accounting import Mechanism
from privacy.crypto.signing import sign, verify
from privacy.errors import AuthenticityError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KIND = "ledger"
"""The kind of document as which a head is signed."""

GENESIS = "0" * 64
"""The head of an empty ledger."""

Purpose = Literal["training", "statistics", "evaluation", "vote"]

_NUMBER = {int, float}
_WHAT: dict[str, set[type]] = {"run": {str}, "round": {int}, "attempt": {int}, "time": {str}}
_TYPES = _WHAT | {"noise_multiplier": _NUMBER, "sample_rate": _NUMBER, "steps": {int}, "discrete": {bool}}
_TYPES |= {"purpose": {str}}
_RECORDS: dict[str, set[type]] = {"records_per_person": {int}}  # only in charges for more than one
_VOTED = _WHAT | {"purpose": {str}, "epsilon": _NUMBER}
_LEFT = _WHAT | {"left": {str}, "purpose": {str}}
_ADOPTED: dict[str, set[type]] = {"adopted": {str}, "time": {str}}
_LOST: dict[str, set[type]] = {"lost": {list}, "time": {str}}
_HEAD, _SIGNATURE = 64, 128  # hex digits


@dataclass(frozen=True)
class Release:
    """What a charge is for: one attempt at one round of one run."""

    run: str
    round: int
    attempt: int
    purpose: Purpose = "training"


@dataclass(frozen=True)
class Entry:
    """One charge in a ledger."""

    release: Release
    mechanism: Mechanism
    time: str  # of the charge, ISO 8601
    head: str  # digest of all lines up to here
    records_per_person: int = 1  # the most that the site used of one person under this charge


@dataclass(frozen=True)
class Adoption:
    """A change of a ledger's key."""

    key: str  # with which the lines before it were verified, in hex; empty if with none
    time: str
    entries: int  # charges before it


class LedgerOwner(NamedTuple):
    """The site and lineage to which a ledger belongs."""

    site: str
    lineage: str

    def signed_part(self, head: str) -> bytes:
        """Return the bytes that are signed for a head."""
        return f"{self.site} {self.lineage} {head}".encode()


@dataclass(frozen=True)
class Entries:
    """The content of a ledger's file."""

    charges: tuple[Entry, ...] = ()
    left: dict[Release, str] = field(default_factory=dict)  # digests of results that left; empty after a failure
    open: dict[Release, Entry] = field(default_factory=dict)  # by round: its last charge, while nothing left since
    heads: frozenset[str] = frozenset({GENESIS})  # all heads that the ledger has had, also of lines that are lost
    adoptions: tuple[Adoption, ...] = ()
    head: str = GENESIS  # digest of all lines
    signature: bytes = b""  # the site's, of the head, in hex; empty if the ledger is
    data: bytes = b""  # all lines, without a torn last one

    @property
    def mechanisms(self) -> list[Mechanism]:
        """What was charged."""
        return [charge.mechanism for charge in self.charges]

    @property
    def records_per_person(self) -> int:
        """The most records of one person that any charge was made for."""
        return max((charge.records_per_person for charge in self.charges), default=1)

    def unused(self, release: Release, mechanism: Mechanism, records_per_person: int) -> Entry | None:
        """Return a charge of this cost under which a release may leave: nothing of its round has left since.

        It may be an earlier attempt's, at which the site was killed.
        """
        own = self.open.get(_of_round(release))
        if own is None or own.release.attempt > release.attempt:
            return None
        return own if own.mechanism == mechanism and own.records_per_person >= records_per_person else None

    def has_round_of(self, release: Release) -> bool:
        """Return whether any attempt at a release's round was charged: with masks, later ones resend its update."""
        return any(_of_round(entry.release) == _of_round(release) for entry in reversed(self.charges))


def read_entries(data: bytes, path: Path, owner: LedgerOwner, key: Ed25519PublicKey | None,
                 known: Entries | None = None) -> Entries:  # fmt: skip
    """Verify a ledger's bytes and read them.

    Args:
        data: the file's content.
        path: the file's path, for errors.
        owner: the site and lineage that the ledger must have.
        key: the site's public key; None to accept any signer.
        known: the content read before; if `data` starts with it, only the rest is verified and read.

    Raises:
        LedgerError: if the data were edited, belong to another ledger, or hold an event unknown to this version.
    """
    size = data.rfind(b"\n") + 1
    known = known if known and size >= len(known.data) and data.startswith(known.data) else Entries()
    if size == len(known.data):
        return known
    charges, left, heads, adoptions = list(known.charges), dict(known.left), set(known.heads), list(known.adoptions)
    unused = dict(known.open)
    head, last, stated = known.head, known.signature, (owner.site, owner.lineage)
    for number, line in enumerate(data[len(known.data) : size].split(b"\n")[:-1], start=known.data.count(b"\n") + 1):
        body = line[_HEAD + _SIGNATURE + 2 :]
        head, last = _chain(head, last, body), line[_HEAD + 1 : _HEAD + _SIGNATURE + 1]
        if line[: -len(body) or None] != head.encode() + b" " + last + b" ":
            msg = f"{path}:{number}: this entry or an earlier one was altered; restore the ledger from backup"
            raise LedgerError(msg)
        heads.add(head)
        try:
            event: dict[str, Any] = dict(json.loads(body))
            if number == 1:
                stated = event["site"], event["lineage"]
            else:
                _take(event, head, charges, left, adoptions, heads)
                _note_unused(event, charges, unused)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = f"{path}:{number}: this version of Cloister cannot read this entry; use the version that wrote it"
            raise LedgerError(msg) from error
        if stated != owner:
            msg = f"{path}: this ledger belongs to another site or lineage; correct `lineage` or the path in site.toml"
            raise LedgerError(msg)
    if key and not signed_by(owner, head, last, key):
        raise LedgerError(_unsigned(data[:size], path, owner, key))
    return Entries(tuple(charges), left, unused, frozenset(heads), tuple(adoptions), head, last, data[:size])


def write_charge(entries: Entries, owner: LedgerOwner, key: Ed25519PrivateKey, release: Release, mechanism: Mechanism,
                 *, records_per_person: int, time: str) -> bytes:  # fmt: skip
    """Return the lines that append a charge to a ledger."""
    return _write(entries, owner, key, _charge(release, mechanism, records_per_person, time))


def write_lost(entries: Entries, owner: LedgerOwner, key: Ed25519PrivateKey, heads: Iterable[str],
               charges: Iterable[tuple[Release, Mechanism]], *, records_per_person: int,
               time: str) -> bytes:  # fmt: skip
    """Return the lines that charge what lost lines may have cost, and then name their heads."""
    events = [_charge(release, mechanism, records_per_person, time) for release, mechanism in charges]
    return _write(entries, owner, key, *events, {"lost": sorted(heads), "time": time})


def _charge(release: Release, mechanism: Mechanism, records_per_person: int, time: str) -> dict[str, Any]:
    cost = asdict(mechanism)
    pure = cost.pop("pure")
    event = {**asdict(release), **({"epsilon": pure} if pure else cost), "time": time}
    if records_per_person > 1:
        event["records_per_person"] = records_per_person
    return event


def write_left(entries: Entries, owner: LedgerOwner, key: Ed25519PrivateKey, release: Release, reason: str,
               time: str) -> bytes:  # fmt: skip
    """Return the lines that record in a ledger what is about to leave for a release."""
    return _write(entries, owner, key, {**asdict(release), "left": reason, "time": time})


def write_adopted(entries: Entries, owner: LedgerOwner, key: Ed25519PrivateKey, before: str,
                  time: str) -> bytes:  # fmt: skip
    """Return the line that records a site's new key in a ledger, signed with it."""
    return _write(entries, owner, key, {"adopted": before, "time": time})


def _write(entries: Entries, owner: LedgerOwner, key: Ed25519PrivateKey, *events: dict[str, Any]) -> bytes:
    head, last, lines = entries.head, entries.signature, b""
    first = [{"site": owner.site, "lineage": owner.lineage, "time": events[0]["time"]}] if head == GENESIS else []
    for entry in [*first, *events]:
        body = json.dumps(entry, sort_keys=True).encode()
        head = _chain(head, last, body)
        last = sign(key, KIND, owner.signed_part(head)).hex().encode()
        lines += head.encode() + b" " + last + b" " + body + b"\n"
    return lines


def _take(event: dict[str, Any], head: str, charges: list[Entry], left: dict[Release, str],
          adoptions: list[Adoption], heads: set[str]) -> None:  # fmt: skip
    """Add an event to those read before it.

    Raises:
        KeyError, ValueError: if a field is missing, unknown, or of the wrong type or value.
    """
    if "left" in event:
        _check(event, _LEFT)
        left[_release(event)] = event["left"]
    elif "adopted" in event:
        _check(event, _ADOPTED)
        adoptions.append(Adoption(event["adopted"], event["time"], len(charges)))
    elif "lost" in event:
        _check(event, _LOST)
        heads |= _lost_heads(event["lost"])
    else:
        charges.append(_entry(event, head))
        if left.get(charges[-1].release) == "":
            del left[charges[-1].release]  # charged again, for another try


def _note_unused(event: dict[str, Any], charges: Sequence[Entry], unused: dict[Release, Entry]) -> None:
    """Note after an event, by round, under which charge nothing has left yet."""
    if "left" in event:
        unused.pop(_of_round(_release(event)), None)
    elif "lost" in event:
        unused.clear()  # a lost line may have said that something left
    elif "adopted" not in event:
        unused[_of_round(charges[-1].release)] = charges[-1]


def _lost_heads(heads: list[Any]) -> set[str]:
    """Return the heads of a line.

    Raises:
        TypeError, ValueError: if they are not heads, or not in order.
    """
    if not all(re.fullmatch("[0-9a-f]{64}", head) for head in heads) or heads != sorted(set(heads)):
        raise ValueError(heads)
    return set(heads)


def signed_by(owner: LedgerOwner, head: str, signature: bytes, key: Ed25519PublicKey) -> bool:
    """Return whether `signature`, in hex, is this key's signature of a head."""
    try:
        parsed = bytes.fromhex(signature.decode("ascii"))
        verify(key, KIND, owner.signed_part(head), parsed)
    except (ValueError, AuthenticityError):
        return False
    return parsed.hex().encode() == signature  # a signature has only one form


def _unsigned(data: bytes, path: Path, owner: LedgerOwner, key: Ed25519PublicKey) -> str:
    """Return an error message that names the first line not signed by the key; adopted lines do not count."""
    lines = data.split(b"\n")[:-1]
    adopted = [place for place, line in enumerate(lines, 1) if "adopted" in json.loads(line[_HEAD + _SIGNATURE + 2 :])]
    first = adopted[-1] if adopted else 1
    parts = [(line[:_HEAD].decode(), line[_HEAD + 1 : _HEAD + _SIGNATURE + 1]) for line in lines]
    number = next(place for place in range(first, len(parts) + 1) if not signed_by(owner, *parts[place - 1], key))
    if number == 1:
        return (
            f"{path}: this ledger is not signed with {owner.site}'s key; restore it from backup; if the site has "
            "had new keys since, see `cloister ledger adopt --help`"
        )
    return (
        f"{path}:{number}: this entry or an earlier one was altered by someone without {owner.site}'s key; "
        "restore the ledger from backup"
    )


def _entry(event: dict[str, Any], head: str) -> Entry:
    types = _VOTED if event["purpose"] == "vote" else _TYPES
    _check(event, types | _RECORDS if "records_per_person" in event else types)
    records = event.get("records_per_person", 1)
    if "records_per_person" in event and records < 2:  # noqa: PLR2004 - one record is not written
        raise ValueError(event)
    if event["purpose"] == "vote":
        mechanism = Mechanism.response(event["epsilon"])
    else:
        mechanism = Mechanism(event["noise_multiplier"], event["sample_rate"], event["steps"], event["discrete"])
    return Entry(_release(event), mechanism, event["time"], head, records)


def _check(event: dict[str, Any], types: dict[str, set[type]]) -> None:
    fits = event.keys() == types.keys() and all(type(event[name]) in allowed for name, allowed in types.items())
    if not fits or event.get("purpose", "training") not in get_args(Purpose):
        raise ValueError(event)


def _release(event: dict[str, Any]) -> Release:
    return Release(event["run"], event["round"], event["attempt"], event["purpose"])


def _of_round(release: Release) -> Release:
    """Return what all attempts at a release's round have in common."""
    return replace(release, attempt=0)


def _chain(head: str, signature: bytes, body: bytes) -> str:
    """Return the head after a line: the digest of the previous head and signature and of the line's event."""
    return sha256(bytes.fromhex(head) + signature + body).hexdigest()
