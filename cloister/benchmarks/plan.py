"""`cloister bench plan`: what `cloister plan` says of three tasks, beside what the whole runs then take.

Plans use records that the tasks make up. The runs are real: the sites' own files, a server and an agent of each site as
processes, TLS and encryption. Seconds are processor seconds of all, from the first key epoch to the end; and, as
`elapsed`, those of the clock, with all processes on this machine. Memory is the largest of a site and the server's.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from cloister.commands.planning import measured_plan
from cloister.local import follow, start_agents, start_server
from cloister.planning.costs import Rates
from cloister.planning.measuring import Watch
from cloister.processes import Processes
from privacy.errors import ConfigError
from simulations.engine.federation import Federation, SiteTerms
from simulations.study.protocol import terms_for
from simulations.study.run_settings import named_sites
from simulations.tasks.references import REFERENCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.run.settings import RunSettings
    from simulations.tasks.references import Reference

TASKS = ("diagnosis", "handwriting", "sentiment")
_LARGEST, _SMALLEST = 5.0, 2.0  # sites, in records
_EPSILON, _HELD_OUT = 3.0, 0.2
_ROW = "{:<13}{:<18}{:>12}{:>12}{:>8}"


def measure(tasks: Sequence[str], sites: int, seconds: float) -> dict[str, Any]:
    """Plan and run each task over so many sites.

    Raises:
        CloisterError: if there is no such task, or a run fails.
    """
    known = {reference.name: reference for reference in REFERENCES}
    for name in tasks:
        if name not in known:
            msg = f"{name!a} is not a reference task; there are {', '.join(known)}"
            raise ConfigError(msg)
    console = Console(stderr=True)
    rows = [
        row
        for name in track(
            tasks, "planning and running", console=console, transient=True, disable=not console.is_terminal
        )
        for row in _rows(known[name], sites, seconds)
    ]
    return {"sites": sites, "rows": rows, "worst": max(abs(row["ratio"] - 1) for row in rows)}


def _rows(reference: Reference, count: int, seconds: float) -> list[dict[str, Any]]:
    order = np.random.default_rng(1).permutation(len(reference.labels()))
    sizes = np.geomspace(_LARGEST, _SMALLEST, count)
    ends = np.cumsum(sizes[:-1] / sizes.sum() * len(order)).astype(int)
    parts: dict[str, Any] = dict(zip(named_sites(count), np.split(order, ends), strict=True))
    settings = reference.settings(_EPSILON, {site: round((1 - _HELD_OUT) * len(part)) for site, part in parts.items()})
    report = measured_plan(settings, Path(), None, Rates(), seconds, lambda _: None)
    sites, server = report["each_site"].values(), report["server"]
    planned = {
        "seconds": sum(site["seconds"] for site in sites) + server["seconds"],
        "elapsed": report["seconds_here"],
        "bytes": report["bytes"],
        "memory of a site": max(site["memory"] for site in sites),
        "memory of server": server["memory"],
    }
    taken = _taken(reference, settings, parts)
    return [
        {"task": reference.name, "what": what, "planned": planned[what], "measured": taken[what],
         "ratio": planned[what] / taken[what]}
        for what in planned
    ]  # fmt: skip


def _taken(reference: Reference, settings: RunSettings, parts: dict[str, Any]) -> dict[str, float]:
    """Run a task with real agents, and return what that took."""
    terms = SiteTerms(
        **{**vars(terms_for(settings)), "held_out": _HELD_OUT, "device": "auto", "source": reference.source,
           "records_per_person": reference.records_per_person}
    )  # fmt: skip
    with TemporaryDirectory(prefix="cloister-bench-") as folder, Processes() as processes:
        federation = Federation.create(Path(folder), tuple(parts), consortium="bench")
        federation.sign(settings)
        for site, part in parts.items():
            reference.write(federation.paths[site] / terms.file, part)
        start_agents(processes, federation, start_server(processes, federation), terms)
        watch = Watch(processes, [*parts, "server"], float("inf"), lambda _: None)
        follow(processes, federation, watch.show)
    first, last = watch.clocks[0], watch.clocks[-1]
    return {
        "seconds": sum(last[name] - first[name] for name in last),
        "elapsed": watch.times[-1] - watch.times[0],
        "bytes": sum(event["bytes_up"] + event["bytes_down"] for event in watch.events),
        "memory of a site": max(watch.memory[site] for site in parts),
        "memory of server": watch.memory["server"],
    }


def table(report: dict[str, Any]) -> str:
    """Format a report as text, in 80 columns."""
    lines = [
        f"{report['sites']} sites, an agent of each and a server as processes",
        "seconds are of processors, elapsed of the clock",
        _ROW.format("task", "what", "planned", "measured", "ratio"),
    ]
    for row in report["rows"]:
        scale = 1e6 if row["what"].startswith(("bytes", "memory")) else 1
        unit = "MB" if scale > 1 else "s"
        lines.append(
            _ROW.format(
                row["task"], row["what"], *(f"{row[key] / scale:,.1f} {unit}" for key in ("planned", "measured")),
                f"{row['ratio']:.2f}",
            )
        )  # fmt: skip
    return "\n".join([*lines, f"furthest from what was taken: {report['worst']:.0%}"])
