"""Keep and log the server's reasons why this site's update is not in a sum: one file per round."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from privacy.errors import VaultError
from privacy.storage import read_file, write_atomically
from privacy.untrusted_text import quoted
from transport.receipts import is_signed

if TYPE_CHECKING:
    from pathlib import Path

    from client.site import Site
    from privacy.run.plan import RoundPlan
    from transport.receipts import Receipt

FOLDER = "receipts"

log = logging.getLogger("cloister.agent")


def keep_receipt(site: Site, plan: RoundPlan, receipt: Receipt) -> None:
    """Keep and log a receipt for a plan's sum, signed or not. A receipt that the server signed is never replaced."""
    signed = is_signed(receipt, plan.digest, site.name, site.place.tls.authority)
    kept = {
        "plan": plan.to_bytes().decode(),
        "reason": receipt.reason,
        "signed": signed,
        "certificate": receipt.certificate.decode(errors="replace"),
        "signature": receipt.signature.hex(),
    }
    path = site.place.folder / FOLDER / f"{plan.run[:8]}-{plan.round:06d}.json"
    try:
        if not _holds_signed(path):
            write_atomically(path, json.dumps(kept, indent=1).encode() + b"\n")
    except (OSError, VaultError) as error:  # the sum goes on without it
        log.warning("%s: the receipt was not kept: %s", path, error)
    by = "the server's signed reason" if signed else "the server says, without a signature,"
    log.warning("round %d: this site's update is not in the sum; %s: %s", plan.round, by, quoted(receipt.reason))


def _holds_signed(path: Path) -> bool:
    try:
        return bool(json.loads(read_file(path))["signed"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):  # missing or damaged
        return False
