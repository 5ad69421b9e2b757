"""Phrase a run's events as lines of a log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LISTED = 5  # problems in a line


def line_of(entry: Mapping[str, Any]) -> str:
    """Return an event as one line.

    >>> line_of({"event": "resumed", "ended": 2, "rounds": 5})
    'goes on after round 2 of 5'
    """
    line = _LINES.get(entry["event"])
    return line(entry) if line else str(entry["event"])


def _round(entry: Mapping[str, Any]) -> str:
    outcome = "released" if entry["released"] else "nothing released"
    reason = f" ({entry['reason']})" if "reason" in entry else ""
    sites = f"{len(entry['sites'])} of {len(entry['cohort'])} sites"
    return f"round {entry['round']}: {outcome}{reason}, {sites}, {entry['seconds']:.2f} s{_problems(entry)}"


def _problems(entry: Mapping[str, Any]) -> str:
    problems = sorted(entry["problems"].items())
    few = "; ".join(f"{site}: {reason}" for site, reason in problems[:_LISTED])
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return f"; {few}{more}" if few else ""


def _away(entry: Mapping[str, Any]) -> str:
    sites, are = _listing(entry["sites"])
    since, until = (f"{datetime.fromtimestamp(entry[name], UTC):%Y-%m-%d %H:%M:%S} UTC" for name in ("since", "until"))
    return f"round {entry['round']} waits for {sites}, which {are} not online (since {since}), until {until}"


def _back(entry: Mapping[str, Any]) -> str:
    sites, are = _listing(entry["sites"])
    return f"round {entry['round']}: {sites} {are} online again"


def _listing(sites: Sequence[str]) -> tuple[str, str]:
    more = f" and {len(sites) - _LISTED} more" if len(sites) > _LISTED else ""
    return f"{', '.join(sites[:_LISTED])}{more}", "is" if len(sites) == 1 else "are"


def _finished(entry: Mapping[str, Any]) -> str:
    line = f"has finished: {entry['rounds']} rounds released a sum"
    if not (behind := entry.get("behind")):
        return line
    sites, are = _listing(behind)
    return f"{line}; {sites} {'lacks' if are == 'is' else 'lack'} the last model"


def _ended(entry: Mapping[str, Any]) -> str:
    return f"{entry['event']}: {entry['reason']}"


_LINES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "started": lambda entry: f"begins: {entry['rounds']} rounds, {len(entry['sites'])} sites",
    "resumed": lambda entry: f"goes on after round {entry['ended']} of {entry['rounds']}",
    "waiting": lambda entry: f"waits: {len(entry['sites'])} of {entry['minimum']} sites are ready{_problems(entry)}",
    "epoch": lambda entry: f"key epoch {entry['epoch']}, made at {entry['leader']}",
    "roster": lambda entry: f"goes on under roster {entry['version']}, with {len(entry['sites'])} of its sites",
    "away": _away,
    "back": _back,
    "round": _round,
    "finished": _finished,
    "failed": _ended,
    "stopped": _ended,
}
