"""Bound what the lost end of a ledger may have cost, and charge it.

A site whose newest ledger is lost restores an older copy. Its own last head, or the one that the server returns, shows
that entries are missing, and the site charges nothing: it would forget what was spent. The way out is to charge the
most that the missing entries can have charged:

- A site names the signed runs in which it may have taken part since, and its settings since. All charges of a run have
  one cost, and the last one fitted under a limit that stood then. So the run has at most as many charges as fit under
  the highest limit, at the largest δ, for the fewest records of one person, that any of the settings had.
- If it cannot name them, the missing entries count as a release without noise: the whole budget is spent for good. The
  lost entries are what would show the limits, so nothing less bounds them.

The heads that show the loss are then accepted, since what they stand for is charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.accounting.accounting import MOST_STEPS, Mechanism, epsilon
from privacy.errors import LedgerError
from privacy.ledger.entries import Release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.ledger.entries import Purpose
    from privacy.ledger.ledger import Budget, Ledger
    from privacy.ledger.ledger_head import SignedHead

UNKNOWN = Release("0" * 64, 0, 0)
"""What an unknown loss is charged as."""

_WITHOUT_NOISE = Mechanism(0.0, 1.0, 1)
_PRECISION = 50  # a bound may be too high by one part in this many


@dataclass(frozen=True)
class NamedRun:
    """A run in which a site may have taken part."""

    digest: str
    purpose: Purpose
    cost: Mechanism  # of one charge


@dataclass(frozen=True)
class Limits:
    """What limited a site's charges to a ledger at some time."""

    budget: Budget
    records_per_person: int


def most_charged(ledger: Ledger, cost: Mechanism, limits: Sequence[Limits]) -> Mechanism | None:
    """Return what a run can have been charged at most, if each of its charges has this cost; None if nothing.

    It may be slightly too high, never too low. Without a limit, it is without noise.

    Args:
        ledger: what is left of it: each of its entries was in it when the lost ones were charged.
        cost: of one charge.
        limits: all that stood at some time since.
    """
    most = ledger.entries().records_per_person

    def fit(count: int) -> bool:
        return any(
            epsilon([_times(cost, count)], limit.budget.delta, group=max(most, limit.records_per_person))
            <= min(limit.budget.run_epsilon, limit.budget.epsilon)
            for limit in limits
        )

    fits, exceeds = 0, 1
    while fit(exceeds):
        fits, exceeds = exceeds, 2 * exceeds
        if exceeds * cost.steps > MOST_STEPS:
            return _WITHOUT_NOISE
    while exceeds - fits > max(1, fits // _PRECISION):
        middle = (fits + exceeds) // 2
        fits, exceeds = (middle, exceeds) if fit(middle) else (fits, middle)
    return _times(cost, exceeds - 1) if exceeds > 1 else None


def _times(cost: Mechanism, count: int) -> Mechanism:
    return Mechanism.response(cost.pure * count) if cost.pure else replace(cost, steps=cost.steps * count)


@dataclass(frozen=True)
class Loss:
    """What the lost end of a ledger may have cost, not charged yet.

    Args:
        ledger: what is left of it.
        heads: heads that the server or the coordinator has kept; those of other ledgers are ignored.
        charges: the most that the lost entries may have charged.
        records_per_person: the most records of one person that any was made for.
    """

    ledger: Ledger
    heads: Sequence[SignedHead]
    charges: Sequence[tuple[Release, Mechanism]]
    records_per_person: int

    @classmethod
    def bounded(
        cls, ledger: Ledger, heads: Sequence[SignedHead], runs: Sequence[NamedRun] | None, limits: Sequence[Limits]
    ) -> Loss:
        """Bound what was lost.

        Args:
            ledger: as above.
            heads: as above.
            runs: all runs charged to this ledger in which the site may have taken part since; None if unknown.
            limits: all that limited its charges at some time since.

        Raises:
            LedgerError: if the ledger is damaged, or entries are lost that none of the runs can have made.
        """
        left = ledger.unchecked()
        most = max(left.records_per_person, *(limit.records_per_person for limit in limits))
        if runs is None:
            return cls(ledger, heads, [(UNKNOWN, _WITHOUT_NOISE)], most)
        costs = [(run, most_charged(left, run.cost, limits)) for run in runs]
        charges = [(Release(run.digest, 0, 0, run.purpose), cost) for run, cost in costs if cost]
        if not charges and ledger.lost_heads(heads, left.entries()):
            msg = (
                f"{ledger.path}: entries are missing, and no run that you named can have made them under the settings "
                "that you named; name all of both, or use --spent"
            )
            raise LedgerError(msg)
        return cls(ledger, heads, charges, most)

    def charge(self) -> None:
        """Charge it, and accept the heads that show it.

        Raises:
            LedgerError: if the ledger cannot be written.
        """
        self.ledger.accept_lost(self.heads, self.charges, self.records_per_person)
