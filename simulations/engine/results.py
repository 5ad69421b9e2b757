"""Read the results of a federation's run from the files that the parties wrote to their own disks."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from client.work.sums import OWN
from privacy.errors import RunError
from privacy.log_file import read_log
from privacy.storage import read_file
from server.settings import read_consortium, read_run
from server.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@contextmanager
def opened_store(federation: Federation) -> Iterator[tuple[Store, str]]:
    """Yield the server's store, and the digest of the federation's signed run."""
    place = read_consortium(federation.server)
    with Store.open(place) as store:
        yield store, read_run(federation.manifest, place.roster()).digest


def read_events(federation: Federation) -> list[dict[str, Any]]:
    """Return the events of the federation's run."""
    with opened_store(federation) as (store, run):
        events = list[dict[str, Any]]()
        while more := store.events(run, after=len(events)):
            events += [event for _, event in more]
        return events


def _stem(federation: Federation) -> str:
    """Return how sites name their files about the federation's run."""
    _, manifest, run, _ = read_run(federation.manifest, read_consortium(federation.server).roster())
    return f"{manifest.settings.name}-{run[:8]}"


def read_own_metrics(federation: Federation, number: int) -> dict[str, float]:
    """Return a round's metrics over all sites' held-out records, from the file that each site keeps for itself.

    This needs access to every site's folder. The server has none of it.
    """
    run = _stem(federation)
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
    run = _stem(federation)
    lines = {site: _last_lines(folder / OWN / f"{run}.personal.jsonl") for site, folder in federation.paths.items()}
    return {site: entries[-1] for site, entries in lines.items() if entries}


def read_results(federation: Federation) -> Results:
    """Read the results of the federation's run.

    Raises:
        RunError: if the run did not finish.
    """
    events = read_events(federation)
    if not events or events[-1]["event"] != "finished":
        reason = events[-1].get("reason", "it has not finished") if events else "it has not started"
        msg = f"the run did not end properly: {reason}"
        raise RunError(msg)
    paths = {
        site: file
        for site, folder in federation.paths.items()
        for file in folder.glob(f"models/{_stem(federation)}.safetensors")
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
