"""`cloister runs RUN --fetch manifest|events|statement`: files with what a server has of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import ConfigError, MalformedError
from privacy.storage import write_atomically
from privacy.untrusted_text import quoted

if TYPE_CHECKING:
    from cloister.client import Client
    from cloister.run_status import RunStatus

_ENDINGS = {"manifest": "manifest", "events": "events.jsonl", "statement": "statement.json"}
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,50}")


def fetched(client: Client, run: str | None, what: str | None, out: Path | None) -> Path:
    """Write what the server has of a run to a file, and return its path.

    Raises:
        ConfigError: if no run is named, there is no such thing, or the file holds something else already.
        CloisterError: as the client does.
    """
    if run is None or what is None:
        msg = "name one run and what to fetch of it: cloister runs RUN --fetch manifest"
        raise ConfigError(msg)
    if what not in _ENDINGS:
        *some, last = _ENDINGS
        advice = f"fetch {', '.join(some)} or {last}"
        if what.startswith("model"):
            advice = (
                "only a run's sites can open its sums, so each has the model in its folder, and the server has none: "
                "have a site export it (cloister export SITE SITE/models/NAME.safetensors FILE)"
            )
        msg = f"there is no {what!a} of a run at the server; {advice}"
        raise ConfigError(msg)
    found = client.run(run)
    data = _read(client, found, what)
    path = out or Path(f"{_file(found)}.{_ENDINGS[what]}")
    if path.exists() and not (path.is_file() and _older(what, path.read_bytes(), data)):
        msg = f"{path} exists already, and is another run, or something else; name another file with --out"
        raise ConfigError(msg)
    write_atomically(path, data)
    return path


def _older(what: str, known: bytes, data: bytes) -> bool:
    """Return whether a file has the same of the same run, as it was before."""
    if what == "manifest":
        return known == data
    if what == "events":
        return data.startswith(known)
    try:
        return bool(json.loads(known)["run"] == json.loads(data)["run"])
    except (ValueError, KeyError, TypeError):
        return False


def _file(run: RunStatus) -> str:
    """Return what a file with this run is called: not everything that a server may say can be a name."""
    name = f"{run.name}-{run.digest[:8]}"
    if not _NAME.fullmatch(name):
        msg = f"the server calls this run {quoted(name)}, which cannot be a file's name; name the file with --out"
        raise MalformedError(msg)
    return name


def _read(client: Client, run: RunStatus, what: str) -> bytes:
    if what == "manifest":
        return client.manifest(run.digest).document
    if what == "events":
        return "".join(json.dumps(event) + "\n" for event in client.events(run.digest)).encode()
    return json.dumps(client.statement(run.digest), indent=1).encode() + b"\n"
