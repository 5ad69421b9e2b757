"""A ledger's lines: read and verified as a chain, strictly, because what is not understood cannot be counted.

A line is the digest of all before it and of itself, a space, and an event as JSON. The first event says whose ledger it
is; every other one is a charge, or says that what was made under a charge is about to leave: its digest, or, empty,
that making it failed. A torn last line, of an
append that was cut off, was never acknowledged to anybody; it is dropped. An edit, a deletion or a swap breaks the
chain.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, get_args

from privacy.accounting import Mechanism
from privacy.errors import LedgerError

if TYPE_CHECKING:
    from pathlib import Path

GENESIS = "0" * 64
"""The head of a ledger in which nothing stands yet."""

Purpose = Literal["training", "statistics", "evaluation"]

_NUMBER = {int, float}
_WHAT: dict[str, set[type]] = {"run": {str}, "round": {int}, "attempt": {int}, "time": {str}}
_TYPES = _WHAT | {"noise_multiplier": _NUMBER, "sample_rate": _NUMBER, "steps": {int}}
_LATER: dict[str, set[type]] = {"discrete": {bool}, "purpose": {str}}  # older ledgers have none
_LEFT = _WHAT | {"left": {str}, "purpose": {str}}


@dataclass(frozen=True)
class Release:
    """What a charge is for: one attempt at one round of one run."""

    run: str
    round: int
    attempt: int
    purpose: Purpose = "training"


@dataclass(frozen=True)
class Entry:
    """One charge, as it stands in a ledger."""

    release: Release
    mechanism: Mechanism
    time: str  # ISO 8601, of when it was charged
    head: str  # digest of all up to here


@dataclass(frozen=True)
class Entries:
    """What a ledger's file holds."""

    charges: tuple[Entry, ...]
    left: dict[Release, str]  # digests of what left, by what it was charged for; empty if it failed since its charge
    heads: frozenset[str]  # that the ledger has had
    head: str  # digest of all of it
    size: int  # bytes, without a torn last line

    def unused(self, release: Release, mechanism: Mechanism) -> Entry | None:
        """Return the charge of a release of this cost for which nothing has left yet."""
        own = next((entry for entry in reversed(self.charges) if entry.release == release), None)
        return own if own and own.mechanism == mechanism and release not in self.left else None

    def has_round_of(self, release: Release) -> bool:
        """Whether any attempt at a release's round was charged: with masks, later ones send what the first made."""
        return any(replace(entry.release, attempt=release.attempt) == release for entry in reversed(self.charges))


def read_entries(data: bytes, path: Path, site: str, lineage: str) -> Entries:
    """Verify a ledger's bytes and read them.

    Raises:
        LedgerError: if they were edited, are another ledger's, or say what this version cannot count.
    """
    size = data.rfind(b"\n") + 1
    charges: list[Entry] = []
    left: dict[Release, str] = {}
    heads, head = {GENESIS}, GENESIS
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        head = _chain(head, line[65:])
        if line[:65] != head.encode() + b" ":
            msg = f"{path}:{number}: this entry or one before it was altered; restore the ledger from backup"
            raise LedgerError(msg)
        heads.add(head)
        try:
            event: dict[str, Any] = dict(json.loads(line[65:]))
            if number > 1:
                if "left" in event:
                    _check(event, _LEFT)
                    left[_release(event)] = event["left"]
                else:
                    charges.append(_entry(event, head))
                    if left.get(charges[-1].release) == "":
                        del left[charges[-1].release]  # charged again, for another try
                    if "purpose" not in event:  # of before it was noted what left: nobody knows
                        left.setdefault(charges[-1].release, "")
                continue
            whose = event["site"], event["lineage"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            msg = f"{path}:{number}: this entry is none of this version's; use the version that wrote it"
            raise LedgerError(msg) from error
        if whose != (site, lineage):
            msg = f"{path}: this ledger is another site's or lineage's; mend `lineage` or the path in site.toml"
            raise LedgerError(msg)
    return Entries(tuple(charges), left, frozenset(heads), head, size)


def write_charge(entries: Entries, site: str, lineage: str, release: Release, mechanism: Mechanism,
                 time: str) -> tuple[bytes, str]:  # fmt: skip
    """Return the lines that append a charge to a ledger, and its head after them."""
    return _write(entries, site, lineage, {**asdict(release), **asdict(mechanism), "time": time})


def write_left(entries: Entries, site: str, lineage: str, release: Release, made: str,
               time: str) -> tuple[bytes, str]:  # fmt: skip
    """Return the lines that say in a ledger what is about to leave for a release, and its head after them."""
    return _write(entries, site, lineage, {**asdict(release), "left": made, "time": time})


def _write(entries: Entries, site: str, lineage: str, last: dict[str, Any]) -> tuple[bytes, str]:
    head, lines = entries.head, b""
    first = [{"site": site, "lineage": lineage, "time": last["time"]}] if head == GENESIS else []
    for event in [*first, last]:
        body = json.dumps(event, sort_keys=True).encode()
        head = _chain(head, body)
        lines += head.encode() + b" " + body + b"\n"
    return lines, head


def _entry(event: dict[str, Any], head: str) -> Entry:
    """Read a charge.

    Raises:
        ValueError: if it has too little, too much, or something else.
    """
    _check(event, _TYPES | {name: each for name, each in _LATER.items() if name in event})
    mechanism = Mechanism(event["noise_multiplier"], event["sample_rate"], event["steps"], event.get("discrete", False))
    return Entry(_release(event), mechanism, event["time"], head)


def _check(event: dict[str, Any], types: dict[str, set[type]]) -> None:
    fits = event.keys() == types.keys() and all(type(event[name]) in each for name, each in types.items())
    if not fits or event.get("purpose", "training") not in get_args(Purpose):
        raise ValueError(event)


def _release(event: dict[str, Any]) -> Release:
    return Release(event["run"], event["round"], event["attempt"], event.get("purpose", "training"))


def _chain(head: str, body: bytes) -> str:
    return sha256(bytes.fromhex(head) + body).hexdigest()
