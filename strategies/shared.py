"""What all runs of one server share: letters with keys, the sites' ledger heads, turns at keys and at sites."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strategies.key_turns import KeyTurns
from strategies.ledger_heads import LedgerHeads
from strategies.sealed_keys import SealedKeys
from strategies.site_turns import SiteTurns

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Shared:
    """One server's, for all its runs."""

    letters: SealedKeys  # used only by the run that changes keys
    heads: LedgerHeads
    turns: KeyTurns = field(default_factory=KeyTurns)
    sites: SiteTurns = field(default_factory=SiteTurns)

    @classmethod
    def opened(cls, epochs: Path, heads: Path) -> Shared:
        """Read the folder with letters and the file with heads.

        Raises:
            LedgerError: if that file is damaged.
        """
        return cls(SealedKeys(epochs), LedgerHeads(heads))
