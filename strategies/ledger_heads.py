"""Remember the last ledger head that each site sent, on the site's behalf.

One small file serves all runs; `privacy.ledger.ledger_head` says what heads are for. The server cannot check a head and
need not: only the site can tell whether it is its own.
"""

from __future__ import annotations

import json
from threading import Lock
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, LedgerError
from privacy.ledger.ledger_head import SignedHead
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path


class LedgerHeads:
    """The last head of each site's ledger, in a file. Thread-safe: the runs of a server share it."""

    def __init__(self, path: Path) -> None:
        self._path, self._turn = path, Lock()
        self._heads, self._saved = _read(path), True

    def get(self, ledger: str) -> SignedHead | None:
        """Return a ledger's last head, or None."""
        with self._turn:
            return self._heads.get(ledger)

    def all(self) -> dict[str, SignedHead]:
        """Return the last head of every ledger, by site; of held-out records, by the site's name and ` held-out`."""
        with self._turn:
            return dict(self._heads)

    def note(self, ledger: str, head: SignedHead) -> None:
        """Remember a ledger's head in place of the previous one."""
        with self._turn:
            if head != self._heads.get(ledger):
                self._heads[ledger], self._saved = head, False

    def save(self) -> None:
        """Write changes to the file, if there are any."""
        with self._turn:
            if self._saved:
                return
            stored = {
                name: {"head": head.head, "signature": head.signature.hex()} for name, head in self._heads.items()
            }
            write_atomically(self._path, json.dumps(stored, indent=1, sort_keys=True).encode() + b"\n")
            self._saved = True


class RunHeads:
    """The heads that concern one run.

    A site has two ledgers, one for held-out records and one for all others; a run concerns one of them.
    """

    def __init__(self, heads: LedgerHeads, *, held_out: bool = False) -> None:
        self._heads, self._which = heads, " held-out" if held_out else ""

    def of(self, site: str | None) -> SignedHead | None:
        """Return the last head that a site sent, or None."""
        return self._heads.get(site + self._which) if site else None

    def note(self, site: str, head: SignedHead | None) -> None:
        """Remember a site's head, if it sent one, in place of the previous one."""
        if head is not None:
            self._heads.note(site + self._which, head)

    def save(self) -> None:
        """Write changes to the file, if there are any."""
        self._heads.save()


def _read(path: Path) -> dict[str, SignedHead]:
    try:
        stored = json.loads(read_file(path))
        return {
            str(site): SignedHead(str(head["head"]), bytes.fromhex(head["signature"])) for site, head in stored.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, CloisterError) as error:
        msg = (
            f"{path}: this file is not a list of ledger heads; restore it from backup; without it, old copies of "
            "ledgers go unnoticed"
        )
        raise LedgerError(msg) from error
