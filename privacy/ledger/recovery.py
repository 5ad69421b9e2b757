"""Bound what the lost end of a ledger may have cost, and charge it.

A site whose newest ledger is lost restores an older copy. Its own last head, or the one that the server returns, shows
that entries are missing, and the site charges nothing: it would forget what was spent. The way out is to charge the
most that the missing entries can have charged:

- A site names the signed runs in which it may have taken part since. All charges of a run have one cost, and the site
  refused whatever would have brought the run over its limit. So the run has at most as many charges as fit under it.
- If it cannot name them, the missing entries count as a release without noise: the whole budget is spent for good.

The heads that show the loss are then accepted, since what they stand for is charged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.accounting.accounting import MOST_STEPS, Mechanism
from privacy.ledger.entries import Release

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from privacy.ledger.entries import Purpose
    from privacy.ledger.ledger import Budget, Ledger
    from privacy.ledger.ledger_head import SignedHead

UNKNOWN = Release("0" * 64, 0, 0)
"""What an unknown loss is charged as."""

_WITHOUT_NOISE = Mechanism(0.0, 1.0, 1)
_PRECISION = 50  # a bound may be one part in so many too high


@dataclass(frozen=True)
class NamedRun:
    """A run in which a site may have taken part."""

    digest: str
    purpose: Purpose
    cost: Mechanism  # of one charge


def most_charged(ledger: Ledger, cost: Mechanism, budget: Budget) -> Mechanism | None:
    """Return what a run can have been charged at most, if each of its charges has this cost; None if nothing.

    It may be slightly too high, never too low. Without a limit, it is without noise.
    """
    limit = min(budget.run_epsilon, budget.epsilon)
    fits, exceeds = 0, 1
    while ledger.cost([_times(cost, exceeds)], budget.delta) <= limit:
        fits, exceeds = exceeds, 2 * exceeds
        if exceeds * cost.steps > MOST_STEPS:
            return _WITHOUT_NOISE
    while exceeds - fits > max(1, fits // _PRECISION):
        middle = (fits + exceeds) // 2
        if ledger.cost([_times(cost, middle)], budget.delta) <= limit:
            fits = middle
        else:
            exceeds = middle
    return _times(cost, exceeds - 1) if exceeds > 1 else None


def _times(cost: Mechanism, count: int) -> Mechanism:
    return Mechanism.response(cost.pure * count) if cost.pure else replace(cost, steps=cost.steps * count)


def charge_lost(
    ledger: Ledger, heads: Iterable[SignedHead], runs: Sequence[NamedRun] | None, budget: Budget
) -> list[tuple[Release, Mechanism]]:
    """Charge what the lost end of a ledger may have cost, and accept its heads; return the charges.

    Args:
        ledger: the ledger.
        heads: heads that the server or the coordinator has kept; those of other ledgers are ignored.
        runs: all runs charged to this ledger in which the site may have taken part since; None if they are unknown.
        budget: its limits.

    Raises:
        LedgerError: if the ledger is damaged or cannot be written.
    """
    if runs is None:
        charges = [(UNKNOWN, _WITHOUT_NOISE)]
    else:
        most = [(run, most_charged(ledger.unchecked(), run.cost, budget)) for run in runs]
        charges = [(Release(run.digest, 0, 0, run.purpose), cost) for run, cost in most if cost]
    ledger.accept_lost(heads, charges, ledger.unchecked().records_per_person)
    return charges
