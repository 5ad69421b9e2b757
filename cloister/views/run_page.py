"""Show one run in full, from how it stands at its server and from its events."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Any

from cloister.views.run import duration, size
from strategies.event_lines import line_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloister.run_status import RunStatus

_WAITS = {"waiting", "away"}


def report(run: RunStatus, events: Iterable[Mapping[str, Any]], paused: str = "") -> dict[str, Any]:
    """Return what a run has come to.

    Args:
        run: how it stands.
        events: all of its events.
        paused: why it cannot go on at the moment, if it cannot.

    Returns:
        The run's fields, and `model` (the last one's digest; null before a round released one), `sites` (in how many
        released rounds each took part), `minimum`, `noise_multiplier` (null before the run began), `epsilon` (by site,
        as it last reported it), `round_seconds` (the median), `bytes_up`, `waits_for` (empty if it waits for nobody),
        `paused`, and `problems` (by site, those of the last round).
    """
    sites, epsilon, seconds = Counter[str](), dict[str, float](), list[float]()
    begun, problems, model = dict[str, Any](), dict[str, str](), None
    last, waits, sent = "", "", 0
    for event in events:
        last = str(event["event"])
        if last in {"started", "resumed"}:
            begun = dict(event)
            sites.update(dict.fromkeys(event["sites"], 0))
        elif last == "round":
            seconds.append(event["seconds"])
            epsilon |= event["epsilon"]
            problems, sent = dict(event["problems"]), sent + event["bytes_up"]
            if event["released"]:
                sites.update(event["sites"])
                model = event.get("model") or model
        waits = line_of(event) if last in _WAITS else ""
    return {
        **asdict(run),
        "model": model,
        "sites": dict(sorted(sites.items())),
        "minimum": begun.get("minimum"),
        "noise_multiplier": begun.get("noise_multiplier"),
        "epsilon": dict(sorted(epsilon.items())),
        "round_seconds": round(median(seconds), 3) if seconds else None,
        "bytes_up": sent,
        "waits_for": waits if run.status == "running" else "",
        "paused": paused,
        "problems": problems,
    }


def page(found: Mapping[str, Any]) -> list[str]:
    """Return a report as lines."""
    began, ended = found["started"], found["ended"]
    times = [f"submitted {moment(found['submitted'])} by {found['by']}"]
    times += [f"began {moment(began)}"] if began else []
    times += [f"ended {moment(ended)}" + (f", after {duration(ended - began)}" if began else "")] if ended else []
    rounds = f"{found['released']} of {found['rounds']} released a model"
    if found["round_seconds"] is not None:
        rounds += f"; {found['round_seconds']:.2f} s each, {size(found['bytes_up'])} of updates in all"
    lines = [("times", "; ".join(times)), ("rounds", rounds)]
    if found["sites"]:
        took_part = ", ".join(f"{site} {count}" for site, count in found["sites"].items())
        lines.append(("sites", f"rounds of each: {took_part}; at least {found['minimum']} in a round"))
    if found["noise_multiplier"] is not None:
        reported = ", ".join(f"{site} {value:.2f}" for site, value in found["epsilon"].items())
        told = f"ε spent over all runs, as reported: {reported}" if reported else "no site reports its ε"
        lines.append(("noise", f"multiplier {found['noise_multiplier']:g}; {told}"))
    lines += [("waits", found["waits_for"])] if found["waits_for"] else []
    lines += [("paused", found["paused"])] if found["paused"] else []
    if found["behind"] and ended:
        lines.append(("behind", f"{', '.join(found['behind'])}: the last model follows once the agent is online"))
    lines += [("problem", f"{site}: {why}") for site, why in sorted(found["problems"].items())]
    lines += [("reason", found["reason"])] if found["reason"] else []
    return [f"  {name:<8}  {text}" for name, text in lines]


def moment(seconds: object) -> str:
    """Format seconds since 1970."""
    try:
        return f"{datetime.fromtimestamp(float(str(seconds)), UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
