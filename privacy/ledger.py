"""The ledger: what a site has spent on the people its data is about, on disk before any record is read.

One file per site and lineage (the people, whatever their file is called), shared by all runs and models.
Rules, each of which a test holds:

- An entry is appended and fsynced before `reserve` returns; only its `Charge` lets training start.
- Nothing is ever refunded or overwritten. A crash may over-count, never under-count: by one release, since a release
  that was charged and has not left, as its own entry would say, is not charged again.
- Entries are events (σ, sampling rate, steps); ε is computed from them.
- Each entry carries the digest of the one before it: an edit, a deletion or a swap is found.
- A torn last line, of an append that was cut off, was never acknowledged to anybody; it is dropped.
- One process at a time: the file is locked.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from privacy.accounting import Mechanism, epsilon
from privacy.errors import BudgetError, LedgerError, ProtocolError
from privacy.storage import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

_GENESIS = "0" * 64


@dataclass(frozen=True)
class Budget:
    """The site's own ceiling for one lineage, over everything that is ever released about it."""

    epsilon: float
    delta: float
    run_epsilon: float = math.inf  # the most that one run may spend, over all rounds and attempts


@dataclass(frozen=True)
class Release:
    """What a charge is for: one attempt at one round of one run."""

    run: str
    round: int
    attempt: int


@dataclass(frozen=True)
class Charge:
    """Proof that a release stands in the ledger: made by `Ledger` alone."""

    release: Release
    mechanism: Mechanism
    head: str
    epsilon: float


class Ledger:
    """An append-only file of charges."""

    def __init__(self, path: Path, site: str, lineage: str) -> None:
        self.path, self.site, self.lineage = path, site, lineage

    def reserve(self, release: Release, mechanism: Mechanism, budget: Budget) -> Charge:
        """Charge a release before any record is read for it.

        Raises:
            BudgetError: if it would exceed the budget; nothing is written.
            LedgerError: if the ledger cannot be trusted or written; nothing may be released then.
        """
        with self._locked() as file:
            entries = self._read(file)
            if (unused := _unused(entries, release, mechanism)) is not None:
                return Charge(release, mechanism, unused["head"], epsilon(_mechanisms(entries), budget.delta))
            spent = epsilon([*_mechanisms(entries), mechanism], budget.delta)
            self._check(spent, budget, f"round {release.round}")
            own = [entry for entry in entries if entry.get("run") == release.run]
            of_run = epsilon([*_mechanisms(own), mechanism], budget.delta)
            if not of_run <= budget.run_epsilon:
                msg = (
                    f"round {release.round}, attempt {release.attempt}, would bring this run's spending at {self.site} "
                    f"to ε {of_run:.2f}, over the {budget.run_epsilon:.2f} of one run; end it"
                )
                raise BudgetError(msg)
            head = self._append(file, entries, {**asdict(release), **asdict(mechanism)})
        return Charge(release, mechanism, head, spent)

    def find(self, run: str, number: int, delta: float) -> Charge | None:
        """Return the last charge for a round of a run, if any was reserved, in this process or another."""
        with self._locked() as file:
            entries = self._read(file)
        for last in range(len(entries), 0, -1):
            entry = entries[last - 1]
            if (entry.get("run"), entry.get("round")) == (run, number) and "left" not in entry:
                release, spent = Release(run, number, entry["attempt"]), epsilon(_mechanisms(entries[:last]), delta)
                return Charge(release, _mechanisms([entry])[0], entry["head"], spent)
        return None

    def leaves(self, release: Release, made: str) -> None:
        """Note that what was made for a release, of this digest, is about to leave. The same again changes nothing.

        Raises:
            ProtocolError: if something else was noted: what was made for a release leaves once.
        """
        with self._locked() as file:
            entries = self._read(file)
            before = _left(entries, release)
            if before is None:
                self._append(file, entries, {**asdict(release), "left": made})
            elif before != made:
                msg = f"{self.site} has made another update for round {release.round}; no second one leaves"
                raise ProtocolError(msg)

    def has_left(self, release: Release) -> bool:
        """Whether anything left for a release."""
        with self._locked() as file:
            return _left(self._read(file), release) is not None

    def check_plan(self, mechanism: Mechanism, budget: Budget) -> float:
        """Return the ε that would be spent after a whole run of this cost.

        Raises:
            BudgetError: if the budget does not cover it.
        """
        planned = epsilon([*self.mechanisms(), mechanism], budget.delta)
        self._check(planned, budget, "this run")
        return planned

    def spent(self, delta: float) -> float:
        """Return the ε spent so far, at this δ."""
        return epsilon(self.mechanisms(), delta)

    def runs(self) -> set[str]:
        """Return the runs for which anything was charged."""
        with self._locked() as file:
            return {entry["run"] for entry in self._read(file) if "run" in entry}

    def mechanisms(self) -> list[Mechanism]:
        """Return everything that was charged.

        Raises:
            LedgerError: if the file was edited.
        """
        with self._locked() as file:
            return _mechanisms(self._read(file))

    def _check(self, would: float, budget: Budget, what: str) -> None:
        if not would <= budget.epsilon:  # so that NaN is a refusal
            msg = (
                f"{what} would bring {self.site}'s spending on {self.lineage!r} to ε {would:.2f}, "
                f"over its budget of {budget.epsilon:.2f} at δ {budget.delta:g}; ask for less, or the site allows more"
            )
            raise BudgetError(msg)

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b", opener=_private) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            msg = f"{self.path}: {error.strerror or error}; no update leaves until the ledger can be written"
            raise LedgerError(msg) from error

    def _read(self, file: BinaryIO) -> list[dict[str, Any]]:
        """Read and verify every entry; cut a torn last line off."""
        file.seek(0)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            file.truncate(len(whole))
        entries: list[dict[str, Any]] = []
        head = _GENESIS
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            head = _chain(head, line[65:])
            if line[:65] != head.encode() + b" ":
                msg = f"{self.path}:{number}: this entry or one before it was altered; restore the ledger from backup"
                raise LedgerError(msg)
            try:
                entries.append(json.loads(line[65:]) | {"head": head})
                _mechanisms(entries[-1:] if number > 1 else [])  # what this version cannot count, it must not skip
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                msg = f"{self.path}:{number}: this entry is none of this version's; use the version that wrote it"
                raise LedgerError(msg) from error
        if entries and (entries[0].get("site"), entries[0].get("lineage")) != (self.site, self.lineage):
            msg = f"{self.path}: this ledger is another site's or lineage's; mend `lineage` or the path in site.toml"
            raise LedgerError(msg)
        return entries

    def _append(self, file: BinaryIO, entries: list[dict[str, Any]], event: dict[str, Any]) -> str:
        head = entries[-1]["head"] if entries else _GENESIS
        events = [] if entries else [{"site": self.site, "lineage": self.lineage}]
        lines = b""
        for each in [*events, event]:
            body = json.dumps(each | {"time": datetime.now(UTC).isoformat(timespec="seconds")}, sort_keys=True).encode()
            head = _chain(head, body)
            lines += head.encode() + b" " + body + b"\n"
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
        if not entries:
            sync_folder(self.path.parent)
        return head


def _mechanisms(entries: list[dict[str, Any]]) -> list[Mechanism]:
    charges = (entry for entry in entries if "lineage" not in entry and "left" not in entry)
    return [Mechanism(each["noise_multiplier"], each["sample_rate"], each["steps"]) for each in charges]


def _of(entries: list[dict[str, Any]], release: Release) -> list[dict[str, Any]]:
    """Return a release's entries, the latest first."""
    wanted = asdict(release)
    return [each for each in reversed(entries) if wanted.items() <= each.items()]


def _left(entries: list[dict[str, Any]], release: Release) -> str | None:
    """Return the digest of what left for a release."""
    return next((str(each["left"]) for each in _of(entries, release) if "left" in each), None)


def _unused(entries: list[dict[str, Any]], release: Release, mechanism: Mechanism) -> dict[str, Any] | None:
    """Return the charge of a release for which nothing has left yet."""
    own = _of(entries, release)
    if not own or "left" in own[0] or _mechanisms(own[:1]) != [mechanism]:
        return None
    return own[0]


def _chain(head: str, body: bytes) -> str:
    return sha256(bytes.fromhex(head) + body).hexdigest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
