"""Let a site go on whose newest ledger is lost: charge what is missing. See `privacy.ledger.recovery`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from client.settings import read_site
from client.turn import without_agent
from cloister.past_runs import read_past_run
from privacy.accounting.accounting import Mechanism
from privacy.errors import CloisterError, ConfigError, KeyFileError, LedgerError
from privacy.failures import reason
from privacy.ledger.ledger_head import SignedHead
from privacy.ledger.recovery import Limits, Loss, NamedRun
from privacy.storage import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from client.settings import SiteFolder, SiteSettings


@dataclass(frozen=True)
class Since:
    """What is known of the time since the newest entry that is left.

    Args:
        heads: the server's `ledger-heads.json`; None if the site's own last heads show the loss.
        runs: the signed runs in which the site may have taken part; None if they are unknown.
        settings: all versions of `site.toml` that stood; at least one, if the runs are known.
    """

    heads: Path | None
    runs: Sequence[Path] | None
    settings: Sequence[Path] = ()

    def __post_init__(self) -> None:
        """Check that either all is known, or nothing.

        Raises:
            ConfigError: if not.
        """
        if self.runs is None and self.settings:
            msg = "--settings goes with --run; with --spent, the whole budget is spent whatever it was"
            raise ConfigError(msg)
        if self.runs is not None and not (self.runs and self.settings):
            msg = (
                "name every run that may have charged the site since, each as --run, and every site.toml that stood "
                "since, the present one too, each as --settings; if one of them is unknown, use --spent"
            )
            raise ConfigError(msg)


def recover(path: Path, since: Since, *, without_head: bool = False) -> list[dict[str, Any]]:
    """Charge what the lost ends of a site's ledgers may have cost, and return the charges.

    Args:
        path: the site's settings or folder.
        since: what is known.
        without_head: whether to charge though no head shows that anything is missing.

    Raises:
        CloisterError: if an agent is running, nothing is missing, or a file cannot be read; nothing is charged then.
    """
    place = read_site(path)
    known = _read_heads(since.heads)
    with without_agent(place.folder):
        ledgers = (place.ledger, place.held_out_ledger)
        if not (without_head or any(ledger.lost_heads(known, ledger.unchecked().entries()) for ledger in ledgers)):
            msg = (
                f"{place.ledger.path}: nothing is missing from this site's ledgers; if the server says otherwise, "
                "give its ledger-heads.json as --heads; if no head is left anywhere and charges are lost all the same, "
                "add --without-head"
            )
            raise LedgerError(msg)
        return _charge(place, known, since)


def charging(since: Since, present: Path | None = None) -> Callable[[SiteFolder, list[SignedHead]], None]:
    """Return what charges, before a backup is put in place, what its ledgers lack.

    Args:
        since: what is known.
        present: the `site.toml` in the folder into which the backup is restored; None if there is none.
    """
    if present and since.runs is not None:
        since = replace(since, settings=[*since.settings, present])

    def charge(place: SiteFolder, known: list[SignedHead]) -> None:
        _charge(place, [*known, *_read_heads(since.heads)], since)

    return charge


def _charge(place: SiteFolder, known: list[SignedHead], since: Since) -> list[dict[str, Any]]:
    named = _named(place, since.runs) if since.runs is not None else None
    settings = _settings(place, since.settings)
    losses = [
        Loss.bounded(
            ledger,
            known,
            None if named is None else named[held_out],
            [
                Limits(each.held_out_limit if held_out else each.limit, each.data.records_per_person)
                for each in settings
            ],
        )
        for ledger, held_out in ((place.ledger, False), (place.held_out_ledger, True))
    ]
    for loss in losses:
        loss.charge()
    return [
        {"lineage": loss.ledger.lineage, "run": release.run, "steps": cost.steps, "epsilon": cost.pure or None}
        for loss in losses
        for release, cost in loss.charges
    ]


def _settings(place: SiteFolder, paths: Sequence[Path]) -> list[SiteSettings]:
    """Return the site's settings and those in further files, as far as they are about the same people.

    Raises:
        ConfigError: if a file cannot be read, or is another site's.
    """
    found = [place.settings]
    for path in paths:
        settings = read_site(path).settings
        if settings.site != place.settings.site:
            msg = f"{path}: these are settings of {settings.site}, not of {place.settings.site}; name this site's own"
            raise ConfigError(msg)
        if settings.data.lineage == place.settings.data.lineage:
            found.append(settings)
    return found


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
