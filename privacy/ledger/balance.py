"""Report what a ledger adds up to: spent, budget and left, with a cross-check by other accountants.

Every ε is per person, for as many records per person as the site states, except in the cross-check: accountants can be
compared only for single records and continuous noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privacy.accounting.accounting import RDP, Relation, epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.accounting.accounting import Accountant, Mechanism
    from privacy.ledger.entries import Entries
    from privacy.ledger.ledger import Budget, Ledger

_USUAL_DELTA, _EXPONENT = 1e-5, 1.1  # a sensible δ: the smaller of this and 1/n^1.1
_TOO_MUCH = "too much for it"
_AGREE, _ROUNDING = 0.02, 1e-3  # how far PRV and PLD may differ; how far PLD may be above RDP, absolute plus relative


@dataclass(frozen=True)
class Balance:
    """A ledger, read once, with the budget and the accountant to compare it with."""

    ledger: Ledger
    limit: Budget
    entries: Entries
    second: Accountant | None = None  # Opacus's PRV, if it is installed

    @property
    def mechanisms(self) -> list[Mechanism]:
        """All charged mechanisms."""
        return [entry.mechanism for entry in self.entries.charges]

    def cost(self, mechanisms: Sequence[Mechanism]) -> dict[str, float]:
        """Return the ε of these mechanisms for a person who is added or removed, and for one who is replaced."""
        delta, group = self.limit.delta, self.ledger.records_per_person
        return {
            "epsilon": self.ledger.cost(mechanisms, delta),
            "epsilon_replace_one": epsilon(mechanisms, delta, relation=Relation.REPLACE_ONE, group=group),
        }

    def figures(self) -> dict[str, Any]:
        """Return the budget, what is spent and what is left. An infinite ε stays infinite."""
        cost = self.cost(self.mechanisms)
        return {
            "lineage": self.ledger.lineage,
            "records_per_person": self.ledger.records_per_person,
            "delta": self.limit.delta,
            "budget": self.limit.epsilon,
            "spent": cost["epsilon"],
            "spent_replace_one": cost["epsilon_replace_one"],
            "left": max(0.0, self.limit.epsilon - cost["epsilon"]),
            "cross_check": _cross_check(self.mechanisms, self.limit.delta, self.second),
        }


def without_infinity(report: dict[str, Any], instead: str | None) -> dict[str, Any]:
    """Return the report with `instead` in place of infinite numbers and NaN, which JSON does not have."""

    def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value, and infinity
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return instead if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(item) for name, item in report.items()}


def excessive(delta: float, records: int) -> str:
    """Return what is wrong with a δ for `records` records and a δ to use instead; empty if it is small enough.

    A mechanism that publishes each record with probability δ is (0, δ)-private.
    """
    if records < 1 or delta <= 1 / records:
        return ""
    fine = min(_USUAL_DELTA, records**-_EXPONENT)
    digit = 10.0 ** math.floor(math.log10(fine))
    return (
        f"δ {delta:g} is above 1 over {records:,} records, which would allow publishing a whole record; use "
        f"{math.floor(fine / digit + 1e-9) * digit:.0e} or less"
    )


def _cross_check(mechanisms: Sequence[Mechanism], delta: float, second: Accountant | None) -> dict[str, Any]:
    """Compare the ledger's accountant with two others, on single records and continuous noise."""
    continuous = [mechanism for mechanism in mechanisms if not mechanism.discrete]
    ours, above = epsilon(continuous, delta), epsilon(continuous, delta, accountant=RDP)
    beside = epsilon(continuous, delta, accountant=second) if second else math.nan
    compared = not math.isnan(beside)
    agree = above >= ours * (1 - _ROUNDING) - _ROUNDING
    if compared:
        agree = agree and (beside == ours or abs(beside - ours) < _AGREE)
    return {
        "pld": ours,
        "rdp": above,
        "prv": beside if compared else None,
        "why_no_prv": "" if compared else _TOO_MUCH if second else "needs Opacus",
        "parts": len(continuous) < len(mechanisms),
        "agree": agree,
    }
