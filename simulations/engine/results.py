"""Read the results of a federation's run from the files that the parties wrote to their own disks."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from client.work.sums import OWN
from privacy.errors import RunError
from privacy.log_file import read_log
from privacy.storage import read_file
from server.settings import read_consortium, read_run
from strategies.event_log import EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.engine.federation import Federation

_TAIL = 1 << 16  # bytes: the last rounds' lines


@dataclass(frozen=True)
class Results:
    """One finished run."""

    run: str
    rounds: int  # number of rounds that released a sum
    model: str  # digest of the model that the sites agreed on
    events: list[dict[str, Any]]
    paths: dict[str, Path]  # each site's model
    digests: dict[str, str]  # SHA-256 of each site's model file: equal if the models are, bit for bit


def event_log_path(federation: Federation) -> Path:
    """Return the server's event log of the federation's signed run."""
    place = read_consortium(federation.server)
    _, manifest, run, _ = read_run(federation.manifest, place.roster())
    return place.folder / place.settings.runs / f"{manifest.settings.name}-{run[:8]}" / EVENTS


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read an event log's events; skip a last line that is still being written."""
    if not path.exists():
        return []
    text = read_log(path)
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def read_own_metrics(federation: Federation, number: int) -> dict[str, float]:
    """Return a round's metrics over all sites' held-out records, from the file that each site keeps for itself.

    This needs access to every site's folder. The server has none of it.
    """
    run = event_log_path(federation).parent.name
    values: dict[str, list[tuple[int, float]]] = {}
    for folder in federation.paths.values():
        for entry in _last_lines(folder / OWN / f"{run}.jsonl"):
            if entry["round"] == number:
                for name, value in entry["metrics"].items():
                    values.setdefault(name, []).append((entry["records"], math.nan if value is None else value))
    return {
        name: sum(count * value for count, value in parts) / sum(count for count, _ in parts)
        for name, parts in values.items()
    }


def read_personal_metrics(federation: Federation) -> dict[str, dict[str, Any]]:
    """Return what each site last noted about its personal model: `shared` and `personal`, on its held-out records."""
    run = event_log_path(federation).parent.name
    lines = {site: _last_lines(folder / OWN / f"{run}.personal.jsonl") for site, folder in federation.paths.items()}
    return {site: entries[-1] for site, entries in lines.items() if entries}


def read_results(federation: Federation) -> Results:
    """Read the results of the federation's run.

    Raises:
        RunError: if the run did not finish.
    """
    path = event_log_path(federation)
    events = read_events(path)
    if not events or events[-1]["event"] != "finished":
        reason = events[-1].get("reason", "it has not finished") if events else "it has not started"
        msg = f"the run did not end properly: {reason}"
        raise RunError(msg)
    paths = {
        site: file
        for site, folder in federation.paths.items()
        for file in folder.glob(f"models/{path.parent.name}.safetensors")
    }
    digests = {site: sha256(read_file(file)).hexdigest() for site, file in paths.items()}
    return Results(events[0]["run"], events[-1]["rounds"], events[-1]["model"], events, paths, digests)


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries in a file's last complete lines; skip lines that a crash cut off."""
    if not path.exists():
        return []
    data = read_log(path)
    start = max(0, len(data) - _TAIL)
    lines = data[start:].split(b"\n")[bool(start) : -1]
    return [json.loads(line) for line in lines if line.endswith(b"}}")]
