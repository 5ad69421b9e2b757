"""What came out of a federation's run, read from what the parties wrote to their own disks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from privacy.errors import RunError
from server.settings import read_consortium, read_run
from strategies.journal import EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from simulations.federation import Federation


@dataclass(frozen=True)
class Results:
    """One finished run."""

    run: str
    rounds: int  # that released a sum
    model: str  # digest on which the sites agreed
    events: list[dict[str, Any]]
    paths: dict[str, Path]  # each site's model
    digests: dict[str, str]  # SHA-256 of each site's model file: equal if the models are, bit for bit


def journal_path(federation: Federation) -> Path:
    """Return where the server writes the events of the federation's signed run."""
    place = read_consortium(federation.server)
    _, manifest, run = read_run(federation.manifest, place.roster())
    return place.folder / place.settings.runs / f"{manifest.settings.name}-{run[:8]}" / EVENTS


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read a journal's events; a line that is still being written is left for the next time."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def read_results(federation: Federation) -> Results:
    """Read the outcome of the federation's run.

    Raises:
        RunError: if it did not finish.
    """
    path = journal_path(federation)
    events = read_events(path)
    if not events or events[-1]["event"] != "finished":
        reason = events[-1].get("reason", "it has not finished") if events else "it has not started"
        msg = f"the run came to no end: {reason}"
        raise RunError(msg)
    paths = {
        site: found
        for site, folder in federation.paths.items()
        for found in folder.glob(f"models/{path.parent.name}.safetensors")
    }
    digests = {site: sha256(found.read_bytes()).hexdigest() for site, found in paths.items()}
    return Results(events[0]["run"], events[-1]["rounds"], events[-1]["model"], events, paths, digests)
