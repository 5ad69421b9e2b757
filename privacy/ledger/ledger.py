"""The ledger: what a site has spent on the people its data is about, on disk before a record is trained on.

One file per site and lineage (the people, whatever their file is called), shared by all runs and models.
Rules, each of which a test holds:

- An entry is appended and fsynced before `reserve` returns; only its `Charge` lets training start.
- Nothing is ever refunded or overwritten. A crash may over-count, never under-count: by one release, since a release
  that was charged and has not left, as an entry of its own would say, is not charged again.
- What failed is charged again when it is asked for again: that it failed was told, and may tell of records.
- Entries are events (σ, sampling rate, steps, whether the noise is discrete); ε is computed from them, per person.
- Each entry is signed with the site's key over the digest of all before it: whoever edits, deletes or swaps without
  that key is found. See `privacy.ledger.entries`.
- An older copy of the file, or none, is noticed with the last head: the site keeps it in another folder, and a server
  remembers it. See `privacy.ledger.ledger_head`.
- One process at a time: the file is locked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import BudgetError, LedgerError, ProtocolError
from privacy.ledger.chain import Chain, now
from privacy.ledger.entries import Release, write_charge, write_left

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["Budget", "Charge", "Ledger", "Release"]


@dataclass(frozen=True)
class Budget:
    """The site's own ceiling for one lineage, over everything that is ever released about it."""

    epsilon: float
    delta: float
    run_epsilon: float = math.inf  # the most that one run may spend, over all rounds and attempts


@dataclass(frozen=True)
class Charge:
    """Proof that a release stands in the ledger: made by `Ledger` alone."""

    release: Release
    mechanism: Mechanism
    head: str


class Ledger(Chain):
    """An append-only file of charges. Every ε is that of a person, who may have several records."""

    def __init__(self, path: Path, site: str, lineage: str, key: Ed25519PrivateKey | Ed25519PublicKey, *,
                 records_per_person: int = 1, last: Path | None = None) -> None:  # fmt: skip
        super().__init__(path, site, lineage, key, last)
        self.records_per_person = records_per_person

    def reserve(self, release: Release, mechanism: Mechanism, budget: Budget) -> Charge:
        """Charge a release before anything is made of records for it; once, if nothing left for it since.

        Raises:
            BudgetError: if it would exceed the budget; nothing is written.
            LedgerError: if the ledger cannot be trusted or written; nothing may be released then.
        """
        with self.opened() as (file, entries):
            if (unused := entries.unused(release, mechanism)) is not None:
                self.sync(file)  # who wrote it may have been killed before it was on disk
                return Charge(release, mechanism, unused.head)
            charged = [entry.mechanism for entry in entries.charges]
            self._check(self.cost([*charged, mechanism], budget.delta), budget, f"round {release.round}")
            own = [entry.mechanism for entry in entries.charges if entry.release.run == release.run]
            of_run = self.cost([*own, mechanism], budget.delta)
            if not of_run <= budget.run_epsilon:
                would, limit = _figures(of_run, budget.run_epsilon)
                msg = (
                    f"round {release.round}, attempt {release.attempt}, would bring this run's spending at {self.site} "
                    f"to ε {would}, over the {limit} of one run; end it"
                )
                raise BudgetError(msg)
            head = self.append(file, write_charge(entries, self.whose, self.signing_key, release, mechanism, now()))
        return Charge(release, mechanism, head)

    def leaves(self, release: Release, made: str) -> None:
        """Note that what was made for a release, of this digest, is about to leave. The same again changes nothing.

        Raises:
            ProtocolError: if something else was noted: what was made for a release leaves once.
            LedgerError: if no attempt at its round was charged, so that this must be an older copy.
        """
        with self.opened() as (file, entries):
            if not entries.has_round_of(release):
                msg = (
                    f"{self.path}: no charge for round {release.round}, for which {self.site} made an update; "
                    "restore the newest copy, nothing leaves until then"
                )
                raise LedgerError(msg)
            before = entries.left.get(release)
            if not before:
                self.append(file, write_left(entries, self.whose, self.signing_key, release, made, now()))
            elif before != made:
                msg = f"{self.site} has made another update for round {release.round}; no second one leaves"
                raise ProtocolError(msg)
            else:
                self.sync(file)  # who wrote it may have been killed before it was on disk

    def fails(self, release: Release) -> None:
        """Note that making what was charged has failed, and that others are about to be told."""
        with self.opened() as (file, entries):
            self.append(file, write_left(entries, self.whose, self.signing_key, release, "", now()))

    def check_writable(self) -> None:
        """Write nothing, durably, so that a ledger which cannot be charged is noticed before a round is planned.

        Raises:
            LedgerError: if it cannot be trusted or written.
        """
        with self.opened() as (file, _):
            self.sync(file)
            if self._last:
                self._last.check_writable()

    def has_left(self, release: Release) -> bool:
        """Whether anything left for a release, other than that it failed."""
        return bool(self.entries().left.get(release))

    def find(self, run: str, number: int) -> Charge | None:
        """Return the last charge for a round of a run, if any was reserved, in this process or another."""
        for entry in reversed(self.entries().charges):
            if (entry.release.run, entry.release.round) == (run, number):
                return Charge(entry.release, entry.mechanism, entry.head)
        return None

    def check_plan(self, mechanism: Mechanism, budget: Budget) -> float:
        """Return the ε that would be spent after a whole run of this cost.

        Raises:
            BudgetError: if the budget does not cover it.
        """
        planned = self.cost([*self.mechanisms(), mechanism], budget.delta)
        self._check(planned, budget, "this run")
        return planned

    def spent(self, delta: float) -> float:
        """Return the ε spent so far, at this δ."""
        return self.cost(self.mechanisms(), delta)

    def cost(self, mechanisms: Iterable[Mechanism], delta: float) -> float:
        """Return the ε that these cost a person of this lineage."""
        return epsilon(mechanisms, delta, group=self.records_per_person)

    def runs(self) -> set[str]:
        """Return the runs for which anything was charged."""
        return {entry.release.run for entry in self.entries().charges}

    def mechanisms(self) -> list[Mechanism]:
        """Return everything that was charged.

        Raises:
            LedgerError: if the file was edited.
        """
        return [entry.mechanism for entry in self.entries().charges]

    def _check(self, would: float, budget: Budget, what: str) -> None:
        if not would <= budget.epsilon:  # so that NaN is a refusal
            after, limit = _figures(would, budget.epsilon)
            msg = (
                f"{what} would bring {self.site}'s spending on {self.lineage!r} to ε {after}, "
                f"over its budget of {limit} at δ {budget.delta:g}; ask for less, or the site allows more"
            )
            raise BudgetError(msg)


def _figures(would: float, limit: float) -> tuple[str, str]:
    """Write both with two decimals, or with so many that they differ."""
    both = "", ""
    for decimals in range(2, 16):
        both = f"{would:.{decimals}f}", f"{limit:.{decimals}f}"
        if both[0] != both[1]:
            break
    return both
