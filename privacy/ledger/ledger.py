"""Keep the ledger: the privacy a site has spent on the people in its data, on disk before a record is trained on.

There is one file per site and lineage (the people, whatever the data file is called), shared by all runs and models.
Tests check each of these rules:

- An entry is appended and fsynced before `reserve` returns; training starts only with its `Charge`.
- Nothing is ever refunded or overwritten. A crash may over-count by one release, and never under-counts. A charged
  release that has not left is not charged again; an entry of its own records when it leaves.
- A release that failed is charged again when it is requested again: the failure was reported, and may reveal something
  about records.
- Entries are events (σ, sampling rate, steps, whether the noise is discrete); ε is computed from them, per person. It
  holds for the most records per person that any entry was charged for, also after the site has lowered the number.
- Each entry is signed with the site's key over the digest of all before it, so edits, deletions and swaps without that
  key are detected. See `privacy.ledger.entries`.
- An older copy of the file, or its absence, is detected by the last head, which the site keeps in another folder and
  the server remembers. See `privacy.ledger.ledger_head`.
- The file is locked: one process at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.clock import date
from privacy.errors import BudgetError, LedgerError, ProtocolError
from privacy.ledger.chain import Chain
from privacy.ledger.entries import Release, write_charge, write_left

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from privacy.ledger.entries import Entries

__all__ = ["Budget", "Charge", "Ledger", "Release"]


@dataclass(frozen=True)
class Budget:
    """The site's own limit for one lineage, over everything that is ever released about it."""

    epsilon: float
    delta: float
    run_epsilon: float = math.inf  # the most that one run may spend, over all rounds and attempts


@dataclass(frozen=True)
class Charge:
    """Proof that a release was charged to the ledger. Only `Ledger` makes one."""

    release: Release
    mechanism: Mechanism
    head: str


class Ledger(Chain):
    """An append-only file of charges. Every ε is per person, and a person may have several records.

    Args:
        path, site, lineage, key, last: as of `Chain`.
        records_per_person: the most records of one person that the site uses from now on.
    """

    def __init__(self, path: Path, site: str, lineage: str, key: Ed25519PrivateKey | Ed25519PublicKey, *,
                 records_per_person: int = 1, last: Path | None = None) -> None:  # fmt: skip
        super().__init__(path, site, lineage, key, last)
        self._records_per_person = records_per_person

    @property
    def records_per_person(self) -> int:
        """The most records of one person, now or under any charge. Every ε is for a person with this many.

        Raises:
            LedgerError: as `entries`.
        """
        return self._most_records(self.entries())

    def unchecked(self) -> Ledger:
        """Return this ledger, to be read without comparing it with the last head that the site keeps."""
        return self.at(self.path, None)

    def at(self, path: Path, last: Path | None) -> Ledger:
        """Return the same site's ledger of the same people, in another place."""
        return Ledger(path, self.site, self.lineage, self._key, records_per_person=self._records_per_person, last=last)

    def reserve(self, release: Release, mechanism: Mechanism, budget: Budget) -> Charge:
        """Charge a release before any record is used for it. If it is charged and nothing has left, return that charge.

        Raises:
            BudgetError: if it would exceed the budget; nothing is written.
            LedgerError: if the ledger cannot be trusted or written; nothing may be released then.
        """
        with self.opened() as (file, entries):
            if (unused := entries.unused(release, mechanism, self._records_per_person)) is not None:
                self.sync(file)  # its writer may have been killed before it was on disk
                return Charge(release, mechanism, unused.head)
            self._check(
                self._cost([*entries.mechanisms, mechanism], budget.delta, entries), budget, f"round {release.round}"
            )
            own = [entry.mechanism for entry in entries.charges if entry.release.run == release.run]
            of_run = self._cost([*own, mechanism], budget.delta, entries)
            if not of_run <= budget.run_epsilon:
                would, limit = _figures(of_run, budget.run_epsilon)
                msg = (
                    f"round {release.round}, attempt {release.attempt}, would bring this run's spending at "
                    f"{self.site} to ε {would}, over the limit of {limit} for one run; end the run"
                )
                raise BudgetError(msg)
            lines = write_charge(
                entries, self.owner, self.signing_key, release, mechanism,
                records_per_person=self._records_per_person, time=date(),
            )  # fmt: skip
            head = self.append(file, lines)
        return Charge(release, mechanism, head)

    def leaves(self, release: Release, update: str) -> None:
        """Record that the result of a release, with digest `made`, is about to leave. Repeating this has no effect.

        Raises:
            ProtocolError: if another digest was recorded: only one result leaves per release.
            LedgerError: if no attempt at its round was charged, so this must be an older copy.
        """
        with self.opened() as (file, entries):
            if not entries.has_round_of(release):
                msg = (
                    f"{self.path}: there is no charge for round {release.round}, though {self.site} made an "
                    "update; restore the newest copy; nothing is sent until then"
                )
                raise LedgerError(msg)
            before = entries.left.get(release)
            if not before:
                self.append(file, write_left(entries, self.owner, self.signing_key, release, update, date()))
            elif before != update:
                msg = (
                    f"{self.site} has already made another update for round {release.round}; it does not send a "
                    "second one"
                )
                raise ProtocolError(msg)
            else:
                self.sync(file)  # its writer may have been killed before it was on disk

    def fails(self, release: Release) -> None:
        """Record that a charged release has failed, before the failure is reported to others."""
        with self.opened() as (file, entries):
            self.append(file, write_left(entries, self.owner, self.signing_key, release, "", date()))

    def check_writable(self) -> None:
        """Check, by a sync without a write, that the ledger can be charged, before a round is planned.

        Raises:
            LedgerError: if it cannot be trusted or written.
        """
        with self.opened() as (file, _):
            self.sync(file)
            if self._last:
                self._last.check_writable()

    def has_left(self, release: Release) -> bool:
        """Return whether a result left for a release; a failure does not count."""
        return bool(self.entries().left.get(release))

    def find(self, run: str, number: int) -> Charge | None:
        """Return the last charge for a round of a run, by this process or another, or None."""
        for entry in reversed(self.entries().charges):
            if (entry.release.run, entry.release.round) == (run, number):
                return Charge(entry.release, entry.mechanism, entry.head)
        return None

    def check_plan(self, mechanism: Mechanism, budget: Budget) -> float:
        """Return the total ε after a whole run of this cost.

        Raises:
            BudgetError: if the budget does not cover it.
        """
        entries = self.entries()
        planned = self._cost([*entries.mechanisms, mechanism], budget.delta, entries)
        self._check(planned, budget, "this run")
        return planned

    def spent(self, delta: float) -> float:
        """Return the ε spent so far at this δ."""
        entries = self.entries()
        return self._cost(entries.mechanisms, delta, entries)

    def cost(self, mechanisms: Iterable[Mechanism], delta: float) -> float:
        """Return the ε of these mechanisms for a person of this lineage.

        Raises:
            LedgerError: as `entries`.
        """
        return self._cost(mechanisms, delta, self.entries())

    def _cost(self, mechanisms: Iterable[Mechanism], delta: float, entries: Entries) -> float:
        return epsilon(mechanisms, delta, group=self._most_records(entries))

    def _most_records(self, entries: Entries) -> int:
        return max(self._records_per_person, entries.records_per_person)

    def runs(self) -> set[str]:
        """Return the runs with at least one charge."""
        return {entry.release.run for entry in self.entries().charges}

    def mechanisms(self) -> list[Mechanism]:
        """Return all charged mechanisms.

        Raises:
            LedgerError: as `entries`.
        """
        return self.entries().mechanisms

    def _check(self, would: float, budget: Budget, purpose: str) -> None:
        if not would <= budget.epsilon:  # so that NaN is a refusal
            after, limit = _figures(would, budget.epsilon)
            msg = (
                f"{purpose} would bring {self.site}'s spending on {self.lineage!r} to ε {after}, over its budget of "
                f"{limit} at δ {budget.delta:g}; plan a cheaper run, or let the site raise its budget"
            )
            raise BudgetError(msg)


def _figures(would: float, limit: float) -> tuple[str, str]:
    """Format both with two decimals, or with as many as it takes for them to differ."""
    both = "", ""
    for decimals in range(2, 16):
        both = f"{would:.{decimals}f}", f"{limit:.{decimals}f}"
        if both[0] != both[1]:
            break
    return both
