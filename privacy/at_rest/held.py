"""Which files of a site's folder are kept encrypted.

Not: `site.toml`, the records, `models/public/` and `statements/`, which people write and read; a request to join, which
goes to the coordinator; and locks and reserved space, which have no content. Servers and coordinators name their files
in `vault.json`, see `server.protection`.
"""

from __future__ import annotations

from pathlib import PurePosixPath

FOLDERS = frozenset({
    "keys", "ledger", "ledger-heads", "outbox", "models", "local", "personal", "metrics", "statistics", "receipts",
    "approvals", "cache", "partial",
})  # fmt: skip
MADE_AGAIN = frozenset({"cache", "partial"})
"""Folders that a backup leaves out, because what is in them can be made again, and is as secret as the records."""

FILES = frozenset({"refused-tasks.json", "audit.json", "session.json"})
RESTORING, RESTORED = ".restoring", ".restored"
"""A backup while it is unpacked beside the files of a site, and once it is complete."""

_PUBLIC = "models", "public"
_SPACE = ".space"


def holds(relative: str) -> bool:
    """Return whether the file with this path, relative to the site's folder, is kept encrypted."""
    parts = PurePosixPath(relative).parts
    if len(parts) < 2:  # noqa: PLR2004 - a folder and a name
        return relative in FILES
    return parts[0] in FOLDERS and parts[:2] != _PUBLIC and not is_empty(relative)


def is_empty(relative: str) -> bool:
    """Return whether this is disk space that was reserved, or a lock: neither has content."""
    name = PurePosixPath(relative).name
    return name.startswith(_SPACE)  # checks add the number of their process


def is_log(relative: str) -> bool:
    """Return whether entries are appended to this file, so that it is encrypted entry by entry."""
    path = PurePosixPath(relative)
    if path.parent.as_posix() == "ledger":
        return True
    return path.parts[:1] in {("outbox",), ("metrics",)} and path.suffix in {".commitments", ".jsonl"}
