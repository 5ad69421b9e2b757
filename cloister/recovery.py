"""Let a site go on whose newest ledger is lost: charge what is missing. See `privacy.ledger.recovery`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from client.settings import read_site
from client.turn import without_agent
from cloister.past_runs import read_past_run
from privacy.accounting.accounting import Mechanism
from privacy.errors import CloisterError, ConfigError, KeyFileError, LedgerError
from privacy.failures import reason
from privacy.ledger.ledger_head import SignedHead
from privacy.ledger.recovery import NamedRun, charge_lost
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from client.settings import SiteFolder


def recover(path: Path, heads: Path | None, runs: Sequence[Path] | None) -> list[dict[str, Any]]:
    """Charge what the lost ends of a site's ledgers may have cost, and return the charges.

    Args:
        path: the site's settings or folder.
        heads: the server's `ledger-heads.json`; None if the site's own last heads show the loss.
        runs: the signed runs in which the site may have taken part since; None if they are unknown.

    Raises:
        CloisterError: if an agent is running, nothing is missing, or a file cannot be read; nothing is charged then.
    """
    place = read_site(path)
    known = _read_heads(heads)
    with without_agent(place.folder):
        ledgers = (place.ledger, place.held_out_ledger)
        if not any(ledger.lost_heads(known, ledger.unchecked().entries()) for ledger in ledgers):
            msg = (
                f"{place.ledger.path}: nothing is missing from this site's ledgers; if the server says otherwise, "
                "give its ledger-heads.json as --heads"
            )
            raise LedgerError(msg)
        return _charge(place, known, runs)


def charging(heads: Path | None, runs: Sequence[Path] | None) -> Callable[[SiteFolder, list[SignedHead]], None]:
    """Return what charges, before a backup is put in place, what its ledgers lack.

    Args:
        heads: as for `recover`.
        runs: as for `recover`.
    """

    def charge(place: SiteFolder, known: list[SignedHead]) -> None:
        _charge(place, [*known, *_read_heads(heads)], runs)

    return charge


def _charge(place: SiteFolder, known: list[SignedHead], runs: Sequence[Path] | None) -> list[dict[str, Any]]:
    named = _named(place, runs) if runs is not None else None
    settings = place.settings
    report = []
    for ledger, limit, held_out in (
        (place.ledger, settings.limit, False), (place.held_out_ledger, settings.held_out_limit, True)
    ):  # fmt: skip
        charges = charge_lost(ledger, known, None if named is None else named[held_out], limit)
        report += [
            {"lineage": ledger.lineage, "run": release.run, "steps": cost.steps, "epsilon": cost.pure or None}
            for release, cost in charges
        ]
    return report


def _named(place: SiteFolder, runs: Sequence[Path]) -> dict[bool, list[NamedRun]]:
    """Return the runs by whether they are charged to the held-out records' ledger."""
    named: dict[bool, list[NamedRun]] = {False: [], True: []}
    for path in runs:
        _, manifest, digest, _ = read_past_run(place, path)
        kind = manifest.settings.kind
        named[kind.held_out].append(NamedRun(digest, kind.purpose, manifest.round_cost))
        if vote := manifest.settings.vote:
            named[True].append(NamedRun(digest, "vote", Mechanism.response(vote.epsilon)))
    return named


def _read_heads(path: Path | None) -> list[SignedHead]:
    if path is None:
        return []
    try:
        stored = json.loads(read_file(path))
        return [SignedHead(str(head["head"]), bytes.fromhex(head["signature"])) for head in stored.values()]
    except OSError as error:
        msg = f"{path}: {reason(error)}; name the server's ledger-heads.json"
        raise KeyFileError(msg) from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, CloisterError) as error:
        msg = f"{path}: this is no list of ledger heads; name the server's ledger-heads.json"
        raise ConfigError(msg) from error


__all__ = ["charging", "recover"]
