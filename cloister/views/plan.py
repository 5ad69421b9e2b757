"""Show what a run will cost: by phase, by party, and what would be cheaper."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status

from cloister.views.observers import table
from cloister.views.run import duration, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PHASE, _PARTY = "{:<12}{:>12}{:>12}   {}", "{:<14}{:>12}{:>11}{:>11}{:>11}{:>11}"
_SHOWN = 4  # sites


@contextmanager
def measuring() -> Iterator[Callable[[str], None]]:
    """Show what is being measured, on standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Status("measuring", console=console) as status:
        yield lambda text: status.update(f"measuring: {text}")


def lines(report: Mapping[str, Any], link: float, server_link: float) -> list[str]:
    """Return a plan as text."""
    cohorts = " and ".join(f"{each['rounds']} rounds of {each['sites']} sites" for each in report["measured"])
    where = {
        "training": "at the site that takes longest; all train at once",
        "encryption": "at each site: to encrypt, send, open and keep",
        "transfer": f"a site sends {size(report['bytes_up'])} and gets {size(report['bytes_down'])}, "
        f"at {link:g} and {server_link:g} Mbit/s",
        "server": "to check, add and send",
    }
    found = [
        f"{report['task']}: {report['sites']} sites, {report['rounds']} rounds, {report['parameters']:,} parameters",
        f"measured here: {cohorts}",
        "",
        _PHASE.format("phase", "a round", "the run", ""),
    ]
    for name, phase in report["phases"].items():
        found.append(_PHASE.format(name, duration(phase["round"]), duration(phase["run"]), where[name]))
    whole = sum(phase["round"] for phase in report["phases"].values())
    found.append(
        _PHASE.format("together", duration(whole), duration(report["seconds"]), "each party on a machine like this one")
    )
    terms = report["terms"]
    found += [
        "",
        "C × T × (D + S): clients × rounds × (download and compute + upload and server)",
        (
            f"= {terms['clients']} × {terms['rounds']} × ({duration(terms['download_and_compute_seconds'])} + "
            f"{duration(terms['upload_and_server_seconds'])}) = {duration(terms['seconds'])} of work by all, "
            f"and {size(report['bytes'])} over the network"
        ),
        "",
        _PARTY.format("", "processor", "sends", "gets", "memory", "money"),
    ]
    sites = sorted(report["each_site"].items(), key=lambda site: -site[1]["seconds"])
    found += [_party(name, party) for name, party in sites[:_SHOWN]]
    if len(sites) > _SHOWN:
        found.append(f"… {len(sites) - _SHOWN} more sites, each with less to train")
    found.append(_party("server", report["server"]))
    if report["money"] is not None:
        found.append(f"money of all: {_money(report['money'])}")
    found.append("")
    if report["epsilon"] is None:
        found.append("privacy: none; there is no noise")
    else:
        found.append(
            f"privacy: each site's people spend ε {report['epsilon']:.2f} at δ {report['delta']:g} "
            f"(σ {report['noise_multiplier']:g})"
        )
    found += table(report)
    if report["delta_warning"]:
        found.append(f"! {report['delta_warning']}")
    if report["cheaper"]:
        found += ["", "cheaper would be", *(f"  {way}" for way in report["cheaper"])]
    return found


def _party(name: str, party: Mapping[str, Any]) -> str:
    money = "–" if party["money"] is None else _money(party["money"])
    return _PARTY.format(
        name[:13],
        duration(party["seconds"]),
        size(party["sent"]),
        size(party["received"]),
        size(party["memory"]),
        money,
    )


def _money(amount: float) -> str:
    return f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"
