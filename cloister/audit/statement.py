"""`cloister audit statement`: write a site's differential privacy statement from the files in its folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from client.settings import read_site
from cloister.accounts import balances, records_of
from cloister.past_runs import read_past_run
from cloister.views.statement_page import page
from privacy.errors import ConfigError
from privacy.report.mechanisms import StatedRun
from privacy.report.statement import Account, state
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from client.settings import SiteFolder

AUDIT = "audit.json"
"""The file with a site's last audit, in its folder."""

_NEEDED = {
    "passed", "checks", "epsilon_claimed", "epsilon_lower", "epsilon_formal", "confidence", "canaries", "date",
    "version",
}  # fmt: skip

FOLDER = "statements"


def write_statement(site: Path, run: Path | None, out: Path | None) -> tuple[dict[str, Any], Path]:
    """Write a site's statement as JSON and as HTML; return it, and the path of the page.

    Raises:
        LedgerError: if a ledger cannot be trusted.
        AuthenticityError: if nobody in the site's rosters signed the run.
        CloisterError: if settings, roster or run cannot be read.
    """
    place = read_site(site)
    past = read_past_run(place, run) if run else None
    stated = StatedRun(past.digest, past.manifest) if past else None
    statement = state(_account(place), stated)
    name = f"{stated.manifest.settings.name}-{stated.digest[:8]}" if stated else "statement"
    path = (out or place.folder / FOLDER) / f"{name}.html"
    write_atomically(path.with_suffix(".json"), json.dumps(statement, indent=1, ensure_ascii=False).encode() + b"\n")
    write_atomically(path, page(statement).encode())
    return statement, path


def _account(place: SiteFolder) -> Account:
    trained, held_out = balances(place)
    settings = place.settings
    return Account(trained, held_out, settings.data.held_out, settings.policy, _last_audit(place.folder / AUDIT),
                   records_of(place))  # fmt: skip


def _last_audit(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        report: dict[str, Any] = json.loads(read_file(path))
    except (ValueError, RecursionError):
        report = {}
    if not _NEEDED.issubset(report):
        msg = f"{path} is not an audit by this version; run `cloister audit privacy {path.parent}` again"
        raise ConfigError(msg)
    return report
